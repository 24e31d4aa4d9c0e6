// The bundle's manifest (docs/bundle.md) as data, and a reader that trusts nothing in it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "bundle_files.hpp"
#include "kontext/kontext.hpp"
#include "links.hpp"

namespace kontext {

namespace fs = std::filesystem;

struct GraphEntry {
    fs::path path, weights;
};

struct TokenizerEntry {
    fs::path path;
    std::size_t max_length;
    std::int64_t pad_id;
};

// How a schedule's evenly spaced times become sigmas. A manifest without them means these defaults, FLUX's.
struct SigmaSettings {
    std::string time_shift = "exponential";  // by e^mu; "linear": by mu; "constant": by `shift`
    double shift = 1;
    std::string spacing = "uniform";  // between the first and the last sigma; or "karras", "exponential", "beta"
    double terminal = 0;              // the last sigma before 0; 0 leaves it where the shift takes it
};

struct SamplerSettings {
    int steps;
    double guidance, base_shift, max_shift;
    int base_tokens, max_tokens, size_multiple;
    std::vector<Size> preferred_sizes;
    std::string reference_method;  // index, offset or stitch; index in manifests from before it was recorded
    SigmaSettings sigmas;
};

bool is_reference_method(const std::string& name);

// A linear map from latents to red, green and blue in [-1, 1], for previews.
struct PreviewColours {
    std::vector<std::array<float, 3>> factors;  // of each latent channel
    std::array<float, 3> bias;
};

// What LoRAs an edit may bring.
struct LoraSlots {
    std::int64_t max_rank;                                     // of all together
    std::map<std::string, std::array<std::int64_t, 2>> rows;  // graph → rows of its inputs `lora_down` and `lora_up`
    std::string layout;                                        // what a file must have been made for
};

struct Bundle {
    fs::path folder;
    int in_channels, head_dim, text_dim, pooled_dim;  // of the transformer
    std::array<int, 3> axes_dim;
    double theta;
    int latent_channels, downscale;  // of the autoencoder
    SamplerSettings sampler;
    std::map<std::string, GraphEntry> graphs;
    std::map<std::string, TokenizerEntry> tokenizers;
    std::map<std::string, FileEntry> files;
    std::map<std::string, LinkEntry> links;
    std::map<std::string, std::string> computes;  // network → fp32, fp16 or bf16
    std::set<std::string> weight_formats;         // of layers, such as int4
    std::set<std::string> input_formats;          // that linears' inputs are rounded to; "static int8"
    bool planned;                                 // made to fit a memory budget
    std::optional<PreviewColours> preview;        // none: the bundle was exported before they were recorded
    std::optional<LoraSlots> lora_slots;          // none: only LoRAs that the export has fused
    std::string digest;                           // what pins the bundle: sha256: and the manifest's SHA-256
    bool allow_links;                             // links hold although this user has not exported the bundle

    // Reads and checks the bundle in `folder`, whose digest must be `digest` unless that is empty. Throws Error that
    // says what is wrong and where.
    static Bundle open(const fs::path& folder, const std::string& digest = "", bool allow_links = false);

    // Checks every file's SHA-256, those of engines and kernels only if `compiled`. Throws Error for the first file
    // that differs from the manifest.
    void verify(bool compiled = true) const;

    // The bytes of one of the bundle's files, read once, at most `most` of them, and compared with the manifest's
    // SHA-256; `kind` is what it should be.
    std::string content(const fs::path& path, std::size_t most, const std::string& kind) const;

    // The ONNX file of `graph`. Whoever loads it reads it by this. Throws Error if it is damaged, or not one that our
    // exporter could have written.
    std::string graph_bytes(const std::string& graph) const;

    std::uint64_t weight_bytes() const;

    // The names by which graphs may take weights: the bundle's own files, and its links.
    std::set<std::string> weight_names() const;

    // Name in the graphs → path of every file that they take weights from; empty for a bundle without links. Throws
    // Error if these do not hold.
    std::map<std::string, fs::path> linked_files() const;
};

}  // namespace kontext
