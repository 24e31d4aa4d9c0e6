// Files from anyone: opened only if they are regular, and read only up to what their reader takes. A FIFO blocks whoever
// opens it, and a link may lead to a device without end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace kontext {

// A file's descriptor, closed with it. What is checked is what was opened: a name can change its file in between.
class RegularFile {
public:
    // Throws Error if it cannot be opened or is no regular file.
    explicit RegularFile(const std::filesystem::path& path);
    ~RegularFile();
    RegularFile(const RegularFile&) = delete;
    RegularFile& operator=(const RegularFile&) = delete;

    // Up to `most` further bytes, fewer at the end. Throws Error.
    std::string read(std::size_t most) const;

    // Reads on from this byte. Throws Error.
    void seek(std::uint64_t start) const;

    const std::filesystem::path path;
    int descriptor;
    std::size_t size;  // when it was opened
};

// The bytes of a file. Throws Error if it has more than `most`, which are not read; `kind` is what it should be.
std::string read_regular(const std::filesystem::path& path, std::size_t most, const std::string& kind);

constexpr std::size_t max_json_bytes = 32u << 20;
constexpr std::size_t max_json_values = 1'000'000;

// The value of JSON of at most `max_json_values` values, counted before any is built. Throws Error, in which the file at
// `path` "is not JSON", or what `fault` says. With `unique_names`, an object with a name twice is one: the last is taken
// otherwise.
nlohmann::json parse_json(const std::string& text, const std::filesystem::path& path,
                          const std::string& fault = "is not JSON", bool unique_names = false);

}  // namespace kontext
