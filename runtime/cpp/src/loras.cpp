#include "loras.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fields.hpp"
#include "manifest_ranges.hpp"
#include "number_checks.hpp"
#include "regular_file.hpp"
#include "safetensors_header.hpp"

namespace kontext {
namespace {

constexpr const char* format = "kontext-lora";
constexpr const char* version = "1";  // both of the files' metadata
constexpr const char* names[] = {"lora_down", "lora_up"};

// A file that was made ready: its tensors are read when they are needed.
struct Ready {
    fs::path path;
    float weight;
    std::map<std::string, TensorEntry> tensors;
    std::int64_t rank;
};

float checked_weight(const Lora& lora) {
    const auto [least, most] = ranges().at("guidance");
    if (!(least <= lora.weight && lora.weight <= most))  // nor NaN
        throw Error("the weight of " + lora.path.string() + " must be a number from " + shown(least) + " to " +
                    shown(most) + ", not " + shown(lora.weight));
    return static_cast<float>(lora.weight);
}

// Throws Error if it is no such file, or not for the bundle with these slots.
Ready open_ready(const Lora& lora, const LoraSlots& slots) {
    const std::string path = lora.path.string();
    SafetensorsHeader header = read_safetensors_header(lora.path);
    if (header.metadata["format"] != format)
        throw Error(path + " is not ready for bundles: `kontext-export lora " + path + " -o FILE` makes it so");
    if (header.metadata["version"] != version)
        throw Error(path + " has the version " + in_quotes(header.metadata["version"]) + ", this reads " + version +
                    ": make it ready again");
    if (header.metadata["layout"] != slots.layout)
        throw Error(path + " was made for a model of other sizes than this bundle's");
    std::map<std::string, std::int64_t> expected;
    for (const auto& [graph, rows] : slots.rows)
        for (std::size_t i = 0; i < rows.size(); ++i) expected[graph + "." + names[i]] = rows[i];
    std::map<std::string, std::vector<std::int64_t>> ranks;  // of each graph
    for (const auto& [name, tensor] : header.tensors) {
        const auto rows = expected.find(name);
        if (rows == expected.end() || tensor.dtype != "F32" || tensor.shape.size() != 2 ||
            tensor.shape[0] != rows->second)
            throw Error(path + ": the tensor " + in_quotes(name) + " is not one of a LoRA for this bundle");
        ranks[name.substr(0, name.find('.'))].push_back(tensor.shape[1]);
    }
    const auto even = [](const auto& graph) { return graph.second.size() == 2 && graph.second[0] == graph.second[1]; };
    if (ranks.empty() || !std::all_of(ranks.begin(), ranks.end(), even))
        throw Error(path + ": a graph needs lora_down and lora_up of one rank");
    std::int64_t rank = 0;
    for (const auto& [graph, found] : ranks) rank = std::max(rank, found[0]);
    return {lora.path, checked_weight(lora), std::move(header.tensors), rank};
}

// Reads the rows of a tensor [rows, rank] into columns of `into`, from `column` on, times `factor`. Throws Error if the
// file cannot be read, or holds NaN or infinity.
void read_columns(const fs::path& path, const std::string& name, const TensorEntry& tensor, float factor, Tensor& into,
                  std::int64_t column) {
    const RegularFile file(path);
    file.seek(tensor.start);
    const auto rows = static_cast<std::size_t>(tensor.shape[0]), rank = static_cast<std::size_t>(tensor.shape[1]),
               width = static_cast<std::size_t>(into.shape[1]);
    const std::size_t most = std::max<std::size_t>(1, (std::size_t{1} << 18) / std::max<std::size_t>(1, rank));
    std::vector<float> values;
    for (std::size_t row = 0; row < rows; row += most) {
        const std::size_t count = std::min(most, rows - row);
        const std::string data = file.read(count * rank * sizeof(float));
        values.resize(count * rank);
        if (data.size() != values.size() * sizeof(float)) throw Error(path.string() + " is truncated");
        std::memcpy(values.data(), data.data(), data.size());
        if (!std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }))
            throw Error(path.string() + ": " + name + " holds NaN or infinity: the file is damaged");
        for (std::size_t i = 0; i < count; ++i)
            std::transform(&values[i * rank], &values[i * rank] + rank,
                           &into.data[(row + i) * width + static_cast<std::size_t>(column)],
                           [factor](float x) { return x * factor; });
    }
}

// Throws Error if all LoRAs together are more than the slots hold.
void check_total(const std::vector<Ready>& loras, const LoraSlots& slots) {
    std::int64_t total = 0;
    std::string listed;
    for (const Ready& each : loras) {
        total = std::min(total + each.rank, std::int64_t{1} << 61);  // a damaged file's
        listed += (listed.empty() ? "" : " and ") + each.path.filename().string();
        listed += " (" + std::to_string(each.rank) + ")";
    }
    if (total > slots.max_rank)
        throw Error("the bundle has slots of rank " + std::to_string(slots.max_rank) + " for all LoRAs together, and " +
                    listed + " need " + std::to_string(total) +
                    ": `kontext-export lora --rank` makes smaller ones, or export with more --lora-slots");
}

// [rows, rank] of all LoRAs side by side.
Tensor joined_columns(const std::vector<Ready>& loras, const std::string& name, std::int64_t rows, bool weighted) {
    std::int64_t width = 0;
    for (const Ready& each : loras)
        if (const auto tensor = each.tensors.find(name); tensor != each.tensors.end()) width += tensor->second.shape[1];
    Tensor result{{rows, width}, std::vector<float>(static_cast<std::size_t>(rows * width))};
    std::int64_t column = 0;
    for (const Ready& each : loras) {
        const auto tensor = each.tensors.find(name);
        if (tensor == each.tensors.end() || tensor->second.shape[1] == 0) continue;
        read_columns(each.path, name, tensor->second, weighted ? each.weight : 1, result, column);
        column += tensor->second.shape[1];
    }
    return result;
}

}  // namespace

Loras::Loras(const Bundle& bundle, const std::vector<Lora>& loras) {
    if (!bundle.lora_slots) {
        if (loras.empty()) return;
        throw Error(bundle.folder.string() +
                    " takes no LoRAs: export it with --lora-slots RANK, or with the LoRA (--lora)");
    }
    const LoraSlots& slots = *bundle.lora_slots;
    std::vector<Ready> ready;
    for (const Lora& each : loras) ready.push_back(open_ready(each, slots));
    check_total(ready, slots);
    for (const auto& [graph, rows] : slots.rows)
        for (std::size_t i = 0; i < rows.size(); ++i)
            tensors[graph][names[i]] = joined_columns(ready, graph + "." + names[i], rows[i], i == 1);
}

Inputs Loras::inputs(const std::string& graph) const {
    Inputs result;
    if (const auto found = tensors.find(graph); found != tensors.end())
        for (const auto& [name, tensor] : found->second) result[name] = view(tensor.data, tensor.shape);
    return result;
}

bool LoraCache::Version::operator==(const Version& other) const {
    return path == other.path && weight == other.weight && modified == other.modified && size == other.size;
}

std::shared_ptr<const Loras> LoraCache::find(const std::vector<Lora>& loras) {
    std::vector<Version> wanted;
    for (const Lora& each : loras) {
        std::error_code code;
        const auto modified = fs::last_write_time(each.path, code).time_since_epoch().count();
        const auto size = static_cast<std::int64_t>(fs::file_size(each.path, code));
        wanted.push_back({each.path.string(), each.weight, modified, size});
    }
    if (!latest || wanted != versions) {
        latest.reset();  // before there are two
        latest = std::make_shared<const Loras>(bundle, loras);
        versions = std::move(wanted);
    }
    return latest;
}

}  // namespace kontext
