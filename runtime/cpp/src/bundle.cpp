#include "bundle.hpp"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <utility>
#include <vector>

#include "fields.hpp"
#include "graph_file.hpp"
#include "regular_file.hpp"
#include "sha256.hpp"
#include "unicode.hpp"

namespace kontext {
namespace {

using Json = nlohmann::json;

constexpr const char* manifest_name = "manifest.json";
constexpr const char* format_name = "kontext-bundle";
constexpr std::int64_t lora_version = 2;  // of bundles with `lora_slots`; 1 of others
constexpr std::int64_t most_rows = std::int64_t{1} << 26;
constexpr std::size_t max_manifest_bytes = 16u << 20;
constexpr const char* graph_names[] = {"text_encoder", "text_encoder_2", "vae_encoder",
                                       "vae_decoder",  "modulation",     "transformer"};

// The bytes of a bundle's manifest.
std::string read_manifest(const fs::path& folder) {
    const fs::path path = folder / manifest_name;
    std::error_code code;
    if (!fs::is_directory(folder, code))
        throw Error(folder.string() + (fs::exists(folder, code) ? " is not a folder" : " does not exist"));
    if (fs::symlink_status(path, code).type() == fs::file_type::not_found)
        throw Error(folder.string() + " is not a bundle: it has no " + manifest_name);
    return read_regular(path, max_manifest_bytes, "a manifest");
}

// As CONTROL of bundle_folder.py.
bool is_control(char32_t c) {
    constexpr std::pair<char32_t, char32_t> ranges[] = {{0, 0x1f},           {0x7f, 0x9f},      {0x61c, 0x61c},
                                                        {0x200e, 0x200f},    {0x2028, 0x202e},  {0x2060, 0x206f},
                                                        {0xfeff, 0xfeff},    {0xfff9, 0xfffb}};
    return std::any_of(std::begin(ranges), std::end(ranges),
                       [c](const auto& range) { return range.first <= c && c <= range.second; });
}

// Throws Error if a text in the manifest, a name or a value, has a control character, as refuse_control of
// runtime/fields.py. Not recursive: a manifest may be nested deeply.
void refuse_control(const Json& manifest, const fs::path& path) {
    const auto check = [&](const std::string& text) {
        for (const char32_t c : unicode::decode(text)) {
            if (!is_control(c)) continue;
            char code[16];
            std::snprintf(code, sizeof code, "U+%04X", static_cast<unsigned>(c));
            throw Error(path.string() + ": the text " + Json(text).dump(-1, ' ', true).substr(0, 80) +
                        " has the control character " + code);
        }
    };
    std::vector<const Json*> pending = {&manifest};
    while (!pending.empty()) {
        const Json& value = *pending.back();
        pending.pop_back();
        if (value.is_string()) check(value.get_ref<const std::string&>());
        if (value.is_object())
            for (const auto& item : value.items()) check(item.key());
        if (value.is_structured())
            for (const Json& each : value) pending.push_back(&each);
    }
}

Json parse_manifest(const std::string& text, const fs::path& folder) {
    const fs::path path = folder / manifest_name;
    Json data = parse_json(text, path);
    if (!data.is_object()) throw Error(path.string() + " is not a JSON object");
    refuse_control(data, path);
    return data;
}

void check_format(const Fields& root, const fs::path& folder) {
    const auto found = root.data.find("format");
    if (found == root.data.end() || *found != format_name)
        throw Error(folder.string() + " is not a bundle: " + manifest_name + " does not say '" + format_name + "'");
    const std::int64_t version = root.whole("format_version");
    if (version > lora_version)
        throw Error(folder.string() + " has bundle format " + std::to_string(version) + ", this reads up to " +
                    std::to_string(lora_version) + ": update libkontext");
}

// The path in field `name`. Throws Error unless it is one of `files`.
fs::path listed(const Fields& entry, const std::string& name, const Bundle& bundle) {
    const std::string value = entry.text(name);
    fs::path path = inside(bundle.folder, value, entry.where + name + ": ");
    if (bundle.files.count(value) == 0)
        throw entry.error(name, "is '" + value + "', which is not among the bundle's files");
    return path;
}

void read_transformer(const Fields& entry, Bundle& bundle) {
    const Json& axes = entry.get("axes_dim");
    const auto good = [](const Json& each) { return Fields::in_range(each, "axes_dim"); };
    if (!axes.is_array() || axes.size() != 3 || !std::all_of(axes.begin(), axes.end(), good))
        throw entry.error("axes_dim", "must be 3 whole numbers from 2 to 4096");
    bundle.axes_dim = {axes[0], axes[1], axes[2]};
    bundle.head_dim = entry.small("head_dim");
    int sum = 0;
    bool even = true;
    for (int axis : bundle.axes_dim) {
        sum += axis;
        even = even && axis % 2 == 0;
    }
    if (!even || sum != bundle.head_dim)
        throw entry.error("axes_dim", "must be even and add up to head_dim (" + std::to_string(bundle.head_dim) + ")");
    bundle.theta = entry.number("theta");
    if (bundle.theta <= 1) throw entry.error("theta", "must be above 1");
    bundle.in_channels = entry.small("in_channels");
    bundle.text_dim = entry.small("text_dim");
    bundle.pooled_dim = entry.small("pooled_dim");
}

PreviewColours read_preview(const Fields& entry, int channels) {
    const std::pair<double, double> range = ranges().at("preview");
    const auto good = [&](const Json& each) {
        return each.is_number() && each.get<double>() >= range.first && each.get<double>() <= range.second;
    };
    const auto colour = [&](const Json& value, const std::string& name, const char* which) {
        if (!value.is_array() || value.size() != 3 || !std::all_of(value.begin(), value.end(), good))
            throw entry.error(name, std::string(which) + "must be 3 numbers from -1000 to 1000");
        return std::array<float, 3>{value[0], value[1], value[2]};
    };
    const Json& factors = entry.get("factors");
    if (!factors.is_array() || factors.size() != static_cast<std::size_t>(channels))
        throw entry.error("factors",
                          "must be a list of " + std::to_string(channels) + " colours, one for each latent channel");
    PreviewColours result;
    for (const Json& each : factors) result.factors.push_back(colour(each, "factors", "each "));
    result.bias = colour(entry.get("bias"), "bias", "");
    return result;
}

SigmaSettings read_sigmas(const Fields& entry) {
    const auto choice = [&](const char* name, std::initializer_list<const char*> choices) {
        const std::string value = entry.text(name);
        std::string listed;
        for (const char* each : choices) {
            if (value == each) return value;
            listed += (listed.empty() ? "" : ", ") + std::string(each);
        }
        throw entry.error(name, "must be one of " + listed);
    };
    SigmaSettings result;
    result.time_shift = choice("time_shift", {"exponential", "linear", "constant"});
    result.spacing = choice("spacing", {"uniform", "karras", "exponential", "beta"});
    result.shift = entry.number("shift");
    if (result.shift <= 0) throw entry.error("shift", "must be above 0");
    if (entry.data.contains("terminal") && !entry.data["terminal"].is_null()) {
        result.terminal = entry.number("terminal");
        if (result.terminal <= 0 || result.terminal >= 1) throw entry.error("terminal", "must be between 0 and 1");
    }
    return result;
}

SamplerSettings read_sampler(const Fields& entry) {
    SamplerSettings result;
    result.size_multiple = entry.small("size_multiple");
    const Json& sizes = entry.get("preferred_sizes");
    if (!sizes.is_array() || sizes.empty() || sizes.size() > most_sizes)
        throw entry.error("preferred_sizes", "must be a list of at most " + std::to_string(most_sizes) + " sizes");
    for (const Json& item : sizes) {
        const auto side = [](const Json& each) { return Fields::in_range(each, "preferred_sizes"); };
        if (!item.is_array() || item.size() != 2 || !side(item[0]) || !side(item[1]))
            throw entry.error("preferred_sizes", "each must be 2 whole numbers from 1 to 4096");
        const Size size{item[0], item[1]};
        if (size.width % result.size_multiple != 0 || size.height % result.size_multiple != 0)
            throw entry.error("preferred_sizes",
                              "must be multiples of size_multiple (" + std::to_string(result.size_multiple) + ")");
        result.preferred_sizes.push_back(size);
    }
    result.reference_method = entry.data.contains("reference_method") ? entry.text("reference_method") : "index";
    if (!is_reference_method(result.reference_method))
        throw entry.error("reference_method", "must be one of index, offset, stitch, not '" +
                                                  result.reference_method.substr(0, 40) + "'");
    result.steps = entry.small("steps");
    result.guidance = entry.number("guidance");
    result.base_shift = entry.number("base_shift");
    result.max_shift = entry.number("max_shift");
    result.base_tokens = entry.small("base_tokens");
    result.max_tokens = entry.small("max_tokens", result.base_tokens + 1);
    if (entry.data.contains("sigmas")) result.sigmas = read_sigmas(entry.group("sigmas"));
    return result;
}

// What networks compute in, and the formats of layers' weights; a manifest that does not say is taken for fp32.
void read_precision(const Json& manifest, Bundle& bundle) {
    // The object in a field, empty if the field is something else. Copies: `items()` of a temporary would dangle.
    const auto group = [](const Json& object, const char* name) {
        const auto found = object.find(name);
        return found != object.end() && found->is_object() ? *found : Json::object();
    };
    const auto text = [](const Json& value) { return value.is_string() ? value.get<std::string>() : ""; };
    const Json precision = group(manifest, "precision");
    const Json networks = group(precision, "networks"), layers = group(precision, "layers");
    for (const auto& [network, compute] : networks.items()) bundle.computes[network] = text(compute);
    for (const auto& network : layers.items()) {
        const Json weights = group(layers, network.key().c_str());
        for (const auto& [weight, layer] : weights.items()) {
            if (!layer.is_object()) {
                bundle.weight_formats.insert(text(layer));
                continue;
            }
            if (layer.contains("format")) bundle.weight_formats.insert(text(layer["format"]));
            const std::string rounding = layer.contains("rounding") ? text(layer["rounding"]) + " " : "";
            if (layer.contains("activations")) bundle.input_formats.insert(rounding + text(layer["activations"]));
        }
    }
    bundle.planned = manifest.contains("plan");
}

LoraSlots read_slots(const Fields& entry, const Bundle& bundle) {
    const Fields rows = entry.group("rows");
    LoraSlots result{entry.whole("max_rank"), {}, entry.text("layout")};
    for (const auto& [graph, pair] : rows.data.items()) {
        if (bundle.graphs.count(graph) == 0) throw rows.error(graph, "is not one of the bundle's graphs");
        const auto good = [](const Json& each) {
            return each.is_number_unsigned() && each >= 1 && each.get<std::uint64_t>() <= std::uint64_t{most_rows};
        };
        if (!pair.is_array() || pair.size() != 2 || !std::all_of(pair.begin(), pair.end(), good))
            throw rows.error(graph, "must be 2 whole numbers from 1 to " + std::to_string(most_rows));
        result.rows[graph] = {pair[0], pair[1]};
    }
    return result;
}

// Checks what concerns several fields.
void check_consistency(const Bundle& bundle) {
    const std::string where = (bundle.folder / manifest_name).string();
    if (bundle.in_channels != 4 * std::int64_t{bundle.latent_channels})
        throw Error(where + ": model.transformer.in_channels is " + std::to_string(bundle.in_channels) +
                    ", but 2x2 latents of " + std::to_string(bundle.latent_channels) + " channels make " +
                    std::to_string(4 * std::int64_t{bundle.latent_channels}));
    const std::int64_t patch = 2 * std::int64_t{bundle.downscale};
    if (bundle.sampler.size_multiple % patch != 0)
        throw Error(where + ": sampler.size_multiple must be a multiple of " + std::to_string(patch) +
                    " pixels, a token's side");
}

}  // namespace

bool is_reference_method(const std::string& name) {
    return name == "index" || name == "offset" || name == "stitch";
}

// As runtime/digest.py.
void check_digest(const std::string& wanted, const std::string& found, const fs::path& folder) {
    const bool plain = wanted.size() == digest_prefix.size() + 64 && wanted.compare(0, 7, digest_prefix) == 0 &&
                       wanted.find_first_not_of("0123456789abcdef", digest_prefix.size()) == std::string::npos;
    if (!plain)
        throw Error("a digest is sha256: and 64 hexadecimal digits, as kontext-export digest BUNDLE prints it, not '" +
                    wanted.substr(0, 80) + "'");
    if (wanted != found)
        throw Error(folder.string() + " is not the required bundle: its digest is " + found + ", not " + wanted);
}

Bundle Bundle::open(const fs::path& folder, const std::string& digest, bool allow_links) {
    const std::string text = read_manifest(folder);
    const std::string found = digest_prefix + sha256(text);
    if (!digest.empty()) check_digest(digest, found, folder);
    const Json manifest = parse_manifest(text, folder);
    const Fields root(manifest, (folder / manifest_name).string() + ": ");
    check_format(root, folder);
    Bundle bundle{};
    bundle.folder = folder;
    bundle.digest = found;
    bundle.allow_links = allow_links;
    bundle.files = read_files(root, folder);
    const Fields model = root.group("model"), graphs = root.group("graphs"), tokenizers = root.group("tokenizers");
    read_transformer(model.group("transformer"), bundle);
    bundle.latent_channels = model.group("autoencoder").small("latent_channels");
    bundle.downscale = model.group("autoencoder").small("downscale");
    bundle.sampler = read_sampler(root.group("sampler"));
    if (manifest.contains("preview")) bundle.preview = read_preview(root.group("preview"), bundle.latent_channels);
    for (const char* name : graph_names) {
        const Fields entry = graphs.group(name);
        entry.whole("opset");
        bundle.graphs[name] = {listed(entry, "file", bundle), listed(entry, "weights", bundle)};
    }
    for (const char* name : {"clip", "t5"}) {
        const Fields entry = tokenizers.group(name);
        bundle.tokenizers[name] = {listed(entry, "file", bundle),
                                   static_cast<std::size_t>(entry.whole("max_length")), entry.whole("pad_id")};
        entry.whole("eos_id");
    }
    if (manifest.contains("lora_slots")) bundle.lora_slots = read_slots(root.group("lora_slots"), bundle);
    bundle.links = read_links(root, folder);
    read_precision(manifest, bundle);
    check_consistency(bundle);
    return bundle;
}

void Bundle::verify(bool compiled) const {
    for (const auto& [name, entry] : files) {
        if (!compiled && is_compiled(name)) continue;
        const fs::path path = folder / name;
        if (file_digest(path) != entry.sha256)
            throw Error(path.string() + " is damaged: its SHA-256 is not the manifest's; export it again");
    }
    verify_links(links, folder);
}

std::string Bundle::content(const fs::path& path, std::size_t most, const std::string& kind) const {
    const auto found = files.find(path.lexically_relative(folder).generic_string());
    if (found == files.end()) throw Error(path.string() + " is not in the bundle's manifest, and is not loaded");
    std::string data = read_regular(path, most, kind);
    if (sha256(data) != found->second.sha256)
        throw Error(path.string() + " is damaged: its SHA-256 is not the manifest's; export it again");
    return data;
}

std::string Bundle::graph_bytes(const std::string& graph) const {
    const fs::path& path = graphs.at(graph).path;
    std::string data = content(path, max_graph_bytes, "a graph");
    check_graph(data, path, graph, weight_names());
    return data;
}

std::uint64_t Bundle::weight_bytes() const {
    std::uint64_t sum = 0;
    for (const auto& [name, entry] : files)
        if (name.compare(0, 8, "weights/") == 0) sum += entry.size;
    for (const auto& [name, link] : links) sum += link.size;
    return sum;
}

std::set<std::string> Bundle::weight_names() const {
    std::set<std::string> result;
    for (const auto& [name, entry] : files) result.insert(name);
    for (const auto& [name, link] : links) result.insert(name);
    return result;
}

std::map<std::string, fs::path> Bundle::linked_files() const {
    std::map<std::string, fs::path> result;
    if (links.empty()) return result;
    if (!allow_links) refuse_foreign(links, digest, folder);
    check_links(links, folder);
    for (const auto& [name, entry] : graphs)
        result[entry.weights.lexically_relative(folder).generic_string()] = entry.weights;
    for (const auto& [name, link] : links) result[name] = link.path;
    return result;
}

}  // namespace kontext
