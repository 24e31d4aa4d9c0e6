// Files outside a bundle that its graphs take weights from, and which bundles may name any; as runtime/links.py, which
// says when they hold.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "fields.hpp"

namespace kontext {

namespace fs = std::filesystem;

const std::string digest_prefix = "sha256:";

// A safetensors file. `sha256` is of the whole file, empty in bundles from before that was recorded.
struct LinkEntry {
    fs::path path;
    std::uint64_t size;
    std::string header_sha256, sha256;
};

using Links = std::map<std::string, LinkEntry>;

// The entries of `links`, by their names in the graphs.
Links read_links(const Fields& root, const fs::path& folder);

// Throws Error unless each file is a safetensors file of the recorded size and header.
void check_links(const Links& links, const fs::path& folder);

// check_links, and the SHA-256 of each whole file.
void verify_links(const Links& links, const fs::path& folder);

// Throws Error if a bundle has links and this user has not exported it.
void refuse_foreign(const Links& links, const std::string& digest, const fs::path& folder);

}  // namespace kontext
