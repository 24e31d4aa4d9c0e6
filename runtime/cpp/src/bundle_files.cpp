#include "bundle_files.hpp"

#include <algorithm>

#include "regular_file.hpp"
#include "sha256.hpp"

namespace kontext {

bool is_compiled(const std::string& name) { return name.rfind("engines/", 0) == 0 || name.rfind("kernels/", 0) == 0; }

bool is_sha256(const std::string& text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

Error cannot_read(const fs::path& path, const std::error_code& code) {
    return Error("cannot read " + path.string() + ": " + code.message());
}

fs::path inside(const fs::path& folder, const std::string& name, const std::string& where) {
    const bool odd = std::any_of(name.begin(), name.end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == '\\' || c == ':'; });
    bool plain = !name.empty() && !odd;
    for (std::size_t at = 0; plain && at <= name.size();) {
        const std::size_t end = std::min(name.find('/', at), name.size());
        const std::string part = name.substr(at, end - at);
        plain = !part.empty() && part != "." && part != "..";
        at = end + 1;
    }
    if (!plain) throw Error(where + "'" + name.substr(0, 80) + "' is not a path inside the bundle");
    return folder / name;
}

std::map<std::string, FileEntry> read_files(const Fields& root, const fs::path& folder) {
    const Fields group = root.group("files");
    if (group.data.size() > most_files)
        throw root.error("files", "has more than " + std::to_string(most_files) + " files");
    std::map<std::string, FileEntry> files;
    const std::string real_folder = fs::canonical(folder).string() + "/";
    for (const auto& item : group.data.items()) {
        const Fields entry = group.group(item.key());
        const auto size = static_cast<std::uint64_t>(entry.whole("size"));
        const std::string sha256 = entry.text("sha256");
        if (!is_sha256(sha256))
            throw entry.error("sha256", "must be 64 hexadecimal digits");
        const fs::path path = inside(folder, item.key(), group.where);
        files[item.key()] = {size, sha256};
        const bool compiled = is_compiled(item.key());
        std::error_code code;
        const fs::path real = fs::canonical(path, code);
        if (code == std::errc::no_such_file_or_directory && compiled) continue;
        if (code == std::errc::no_such_file_or_directory)
            throw Error(path.string() + " is missing: the bundle is incomplete");
        if (code) throw cannot_read(path, code);
        if (real.string().compare(0, real_folder.size(), real_folder) != 0)
            throw Error(path.string() + " is a symbolic link to outside the bundle");
        if (!fs::is_regular_file(path, code)) throw Error(path.string() + " is not a file");
        const std::uint64_t actual = fs::file_size(path, code);
        if (code) throw cannot_read(path, code);
        if (actual != size && !compiled)
            throw Error(path.string() + " has " + std::to_string(actual) + " bytes, the manifest says " +
                        std::to_string(size) + ": the bundle is damaged");
    }
    return files;
}

std::string file_digest(const fs::path& path) {
    const RegularFile file(path);
    Sha256 digest;
    for (std::string block = file.read(1 << 20); !block.empty(); block = file.read(1 << 20))
        digest.update(block.data(), block.size());
    return digest.hex();
}

}  // namespace kontext
