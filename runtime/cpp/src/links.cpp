#include "links.hpp"

#include <array>
#include <cstdlib>
#include <fstream>

#include "bundle_files.hpp"
#include "sha256.hpp"

namespace kontext {
namespace {

constexpr std::uint64_t max_header_bytes = 100'000'000;  // of a safetensors file; the format's own limit

// The SHA-256 of a safetensors file's header; "" if it has none.
std::string header_digest(const fs::path& path, std::uint64_t size) {
    std::ifstream file(path, std::ios::binary);
    std::array<unsigned char, 8> bytes{};
    if (!file.read(reinterpret_cast<char*>(bytes.data()), 8)) return "";
    std::uint64_t length = 0;
    for (std::size_t k = 8; k-- > 0;) length = length << 8 | bytes[k];
    if (length < 2 || length > max_header_bytes || size < 8 || length > size - 8) return "";
    std::string header(length, '\0');
    return file.read(header.data(), static_cast<std::streamsize>(length)) ? sha256(header) : "";
}

// As own_folder of runtime/links.py; "" for a user without a home.
fs::path own_folder() {
    const char *state = std::getenv("XDG_STATE_HOME"), *home = std::getenv("HOME");
    const bool set = state != nullptr && *state == '/';  // the specification ignores relative ones
    if (!set && home == nullptr) return "";
    return (set ? fs::path(state) : fs::path(home) / ".local" / "state") / "kontext-export" / "linked-bundles";
}

}  // namespace

Links read_links(const Fields& root, const fs::path& folder) {
    Links links;
    if (!root.data.contains("links")) return links;
    const Fields group = root.group("links");
    for (const auto& item : group.data.items()) {
        const Fields entry = group.group(item.key());
        inside(folder, item.key(), group.where);
        LinkEntry link{entry.text("path"), static_cast<std::uint64_t>(entry.whole("size", 8)), entry.text("header_sha256"),
                       entry.data.contains("sha256") ? entry.text("sha256") : ""};
        if (!link.path.is_absolute())
            throw entry.error("path", "must be an absolute path, not '" + link.path.string().substr(0, 40) + "'");
        for (const std::string& digest : {link.header_sha256, link.sha256})
            if (!digest.empty() && !is_sha256(digest)) throw entry.error("sha256", "must be 64 hexadecimal digits");
        links[item.key()] = std::move(link);
    }
    return links;
}

void check_links(const Links& links, const fs::path& folder) {
    for (const auto& [name, link] : links) {
        std::error_code code;
        if (!fs::is_regular_file(link.path, code))
            throw Error(link.path.string() + (fs::exists(link.path, code) ? " is not a regular file" : " does not exist") +
                        ", and the bundle takes weights from it: export the bundle again");
        if (fs::file_size(link.path, code) != link.size || header_digest(link.path, link.size) != link.header_sha256)
            throw Error(link.path.string() + " is not the file that " + folder.string() +
                        " was exported over; export it again");
    }
}

void verify_links(const Links& links, const fs::path& folder) {
    check_links(links, folder);
    for (const auto& [name, link] : links) {
        if (link.sha256.empty())
            throw Error(folder.string() + " does not have the SHA-256 of " + link.path.string() +
                        ", from which it takes weights: it was made before whole files were recorded, export it again");
        if (file_digest(link.path) != link.sha256)
            throw Error(link.path.string() + " has changed since " + folder.string() +
                        " was exported over it; export it again");
    }
}

void refuse_foreign(const Links& links, const std::string& digest, const fs::path& folder) {
    if (links.empty()) return;
    const fs::path own = own_folder();
    std::error_code code;
    if (!own.empty() && fs::is_regular_file(own / digest.substr(digest_prefix.size()), code)) return;
    throw Error(folder.string() + " takes weights from " + links.begin()->second.path.string() +
                ", and you have not exported it on this machine: allow it with --allow-links (allow_links) if you know "
                "where it comes from, or export it again");
}

}  // namespace kontext
