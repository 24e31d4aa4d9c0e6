// The files of a bundle: each one in the manifest's `files` is there, is inside the folder, and has its size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <system_error>

#include "fields.hpp"

namespace kontext {

namespace fs = std::filesystem;

struct FileEntry {
    std::uint64_t size;
    std::string sha256;  // hexadecimal
};

std::map<std::string, FileEntry> read_files(const Fields& root, const fs::path& folder);

// Whether a file of a bundle is compiled from the rest, for what does not run here: engines and kernels.
bool is_compiled(const std::string& name);

// `folder/name`. Throws Error unless `name` is a normalized relative path without "..", "\\" or ":".
fs::path inside(const fs::path& folder, const std::string& name, const std::string& where);

bool is_sha256(const std::string& text);

Error cannot_read(const fs::path& path, const std::error_code& code);

// The SHA-256 of a file, in hexadecimal.
std::string file_digest(const fs::path& path);

}  // namespace kontext
