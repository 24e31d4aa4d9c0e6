#include "regular_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <vector>

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

void RegularFile::seek(std::uint64_t start) const {
    if (::lseek(descriptor, static_cast<off_t>(start), SEEK_SET) < 0)
        throw Error("cannot read " + path.string() + ": " + std::strerror(errno));
}

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

nlohmann::json parse_json(const std::string& text, const std::filesystem::path& path, const std::string& fault,
                          bool unique_names) {
    const std::string start = path.string() + " " + fault + ": ";
    if (count_values(text) > max_json_values)
        throw Error(start + "it has more than " + std::to_string(max_json_values) + " values");
    using Json = nlohmann::json;
    std::vector<std::set<std::string>> names;  // of the objects that are being read
    const auto check_names = [&](int, Json::parse_event_t event, Json& value) {
        if (event == Json::parse_event_t::object_start) names.emplace_back();
        if (event == Json::parse_event_t::object_end) names.pop_back();
        if (event == Json::parse_event_t::key && !names.back().insert(value.get<std::string>()).second)
            throw Error(start + "a name appears twice");
        return true;
    };
    try {
        return unique_names ? Json::parse(text, check_names) : Json::parse(text);
    } catch (const Json::exception& error) {
        throw Error(start + reason(error));
    }
}

}  // namespace kontext
