#include "regular_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <nlohmann/json.hpp>

#include "fields.hpp"
#include "kontext/kontext.hpp"

namespace kontext {
namespace {

// Those between values and those that begin one, but for those inside strings.
std::size_t count_values(const std::string& text) {
    std::size_t count = 1;
    bool inside = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (inside && text[i] == '\\')
            ++i;
        else if (text[i] == '"')
            inside = !inside;
        else if (!inside)
            count += text[i] == ',' || text[i] == '[' || text[i] == '{';
    }
    return count;
}

}  // namespace

RegularFile::RegularFile(const std::filesystem::path& path)
    // Without O_NONBLOCK, opening a FIFO waits for a writer. It changes nothing for a regular file.
    : path(path), descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)), size(0) {
    struct stat status {};
    if (descriptor < 0 || ::fstat(descriptor, &status) != 0) {
        const int code = errno;
        if (descriptor >= 0) ::close(descriptor);
        throw Error("cannot read " + path.string() + ": " + std::strerror(code));
    }
    if (!S_ISREG(status.st_mode)) {
        ::close(descriptor);
        throw Error(S_ISDIR(status.st_mode) ? "cannot read " + path.string() + ": " + std::strerror(EISDIR)
                                            : path.string() + " is not a regular file");
    }
    size = static_cast<std::size_t>(status.st_size);
}

RegularFile::~RegularFile() { ::close(descriptor); }

std::string RegularFile::read(std::size_t most) const {
    std::string data;
    while (data.size() < most) {
        constexpr std::size_t block = 1 << 20;
        const std::size_t start = data.size();
        data.resize(start + std::min(block, most - start));
        const ssize_t count = ::read(descriptor, &data[start], data.size() - start);
        if (count < 0) throw Error("cannot read " + path.string() + ": " + std::strerror(errno));
        data.resize(start + static_cast<std::size_t>(count));
        if (count == 0) break;
    }
    return data;
}

std::string read_regular(const std::filesystem::path& path, std::size_t most, const std::string& kind) {
    std::string data = RegularFile(path).read(most + 1);
    if (data.size() > most)
        throw Error(path.string() + " is larger than " + std::to_string(most >> 20) + " MiB: not " + kind);
    return data;
}

nlohmann::json parse_json(const std::string& text, const std::filesystem::path& path) {
    if (count_values(text) > max_json_values)
        throw Error(path.string() + " is not JSON: it has more than " + std::to_string(max_json_values) + " values");
    try {
        return nlohmann::json::parse(text);
    } catch (const nlohmann::json::exception& error) {
        throw Error(path.string() + " is not JSON: " + reason(error));
    }
}

}  // namespace kontext
