#include "safetensors_header.hpp"

#include <algorithm>
#include <tuple>

#include <nlohmann/json.hpp>

#include "fields.hpp"
#include "regular_file.hpp"

namespace kontext {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::uint64_t max_header_bytes = 100'000'000;  // the format's own limit
constexpr std::size_t max_dimensions = 64;
constexpr std::uint64_t max_number = std::uint64_t{1} << 62;  // of elements, and of bytes

const std::map<std::string, std::uint64_t>& bits() {
    static const std::map<std::string, std::uint64_t> table = {
        {"F64", 64},        {"F32", 32},        {"F16", 16},    {"BF16", 16},   {"F8_E4M3", 8}, {"F8_E5M2", 8},
        {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4},
        {"I64", 64},        {"I32", 32},        {"I16", 16},    {"I8", 8},      {"U64", 64},    {"U32", 32},
        {"U16", 16},        {"U8", 8},          {"BOOL", 8},    {"C64", 64}};
    return table;
}

// The whole numbers of a list; throws `damaged` for anything else.
std::vector<std::uint64_t> whole_numbers(const Json& entry, const char* name, const Error& damaged) {
    const auto found = entry.find(name);
    if (found == entry.end() || !found->is_array()) throw damaged;
    std::vector<std::uint64_t> result;
    for (const Json& each : *found) {
        if (!each.is_number_unsigned() || each.get<std::uint64_t>() >= max_number) throw damaged;
        result.push_back(each);
    }
    return result;
}

TensorEntry read_entry(const fs::path& path, const std::string& name, const Json& entry, std::uint64_t base) {
    const Error damaged(path.string() + " has a damaged safetensors header at " + in_quotes(name));
    if (!entry.is_object()) throw damaged;
    const auto dtype = entry.find("dtype");
    const auto format = dtype != entry.end() && dtype->is_string() ? bits().find(*dtype) : bits().end();
    if (format == bits().end())
        throw Error(path.string() + ": tensor " + in_quotes(name) + " has the unknown number format " +
                    (dtype == entry.end() ? "None"
                     : dtype->is_string() ? in_quotes(*dtype)
                                          : dtype->dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 80)));
    const std::vector<std::uint64_t> shape = whole_numbers(entry, "shape", damaged),
                                     offsets = whole_numbers(entry, "data_offsets", damaged);
    if (shape.size() > max_dimensions || offsets.size() != 2 || offsets[1] < offsets[0]) throw damaged;
    // Elements, and their number if no dimension were 0: Python computes strides of empty tensors too.
    std::uint64_t count = 1, strides = 1;
    for (const std::uint64_t extent : shape) {
        if (strides > (max_number - 1) / std::max<std::uint64_t>(extent, 1)) throw damaged;
        strides *= std::max<std::uint64_t>(extent, 1);
        count *= extent;
    }
    if (count > max_number / 64 || count * format->second % 8 != 0 ||
        offsets[1] - offsets[0] != count * format->second / 8)
        throw damaged;
    return {*dtype, {shape.begin(), shape.end()}, base + offsets[0], offsets[1] - offsets[0]};
}

// Throws Error unless the tensors fill the file exactly.
void check_layout(const fs::path& path, const std::map<std::string, TensorEntry>& tensors, std::uint64_t base,
                  std::uint64_t size) {
    std::vector<std::tuple<std::uint64_t, std::uint64_t, std::string>> places;
    for (const auto& [name, each] : tensors) places.emplace_back(each.start, each.start + each.size, name);
    std::sort(places.begin(), places.end());
    std::uint64_t position = base;
    for (const auto& [start, stop, name] : places) {
        if (start != position)
            throw Error(path.string() + " has a damaged safetensors header: tensor " + in_quotes(name) +
                        " is out of place");
        position = stop;
    }
    if (position > size)
        throw Error(path.string() + " is truncated: " + std::to_string(size) + " of " + std::to_string(position) +
                    " bytes: download it again");
    if (position < size)
        throw Error(path.string() + " is damaged: " + std::to_string(size - position) +
                    " bytes more than its header says");
}

}  // namespace

SafetensorsHeader read_safetensors_header(const fs::path& path) {
    std::error_code code;
    if (fs::status(path, code).type() == fs::file_type::not_found) throw Error(path.string() + " is missing");
    const RegularFile file(path);
    const std::string prefix = file.read(8);
    std::uint64_t length = 0;
    for (std::size_t i = prefix.size(); i > 0; --i) length = length << 8 | static_cast<unsigned char>(prefix[i - 1]);
    if (prefix.size() < 8 || length < 2 || length > max_header_bytes)
        throw Error(path.string() + " is not a safetensors file");
    if (length > file.size - 8)
        throw Error(path.string() + " is truncated: " + std::to_string(file.size) + " bytes, its header alone is " +
                    std::to_string(length) + ": download it again");
    const std::string text = file.read(length);
    const Json entries = parse_json(text, path, "has a damaged safetensors header", true);
    if (!entries.is_object()) throw Error(path.string() + " has a damaged safetensors header: not a JSON object");
    SafetensorsHeader header;
    for (const auto& item : entries.items()) {
        if (item.key() != "__metadata__") {
            header.tensors[item.key()] = read_entry(path, item.key(), item.value(), 8 + length);
        } else if (item.value().is_object()) {
            for (const auto& pair : item.value().items())
                if (pair.value().is_string()) header.metadata[pair.key()] = pair.value();
        }
    }
    check_layout(path, header.tensors, 8 + length, file.size);
    return header;
}

}  // namespace kontext
