// The bundle's manifest (docs/bundle.md) as data, and a reader that trusts nothing in it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kontext/kontext.hpp"

namespace kontext {

namespace fs = std::filesystem;

struct FileEntry {
    std::uint64_t size;
    std::string sha256;  // hexadecimal
};

struct GraphEntry {
    fs::path path, weights;
};

// A file outside the bundle that graphs take weights from.
struct LinkEntry {
    fs::path path;
    std::uint64_t size;
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

    // Reads and checks the bundle in `folder`. Throws Error that says what is wrong and where.
    static Bundle open(const fs::path& folder);

    // Checks every file's SHA-256. Throws Error for the first file that differs from the manifest.
    void verify() const;

    std::uint64_t weight_bytes() const;

    // The names by which graphs may take weights: the bundle's own files, and its links.
    std::set<std::string> weight_names() const;

    // Name in the graphs → path of every file that they take weights from; empty for a bundle without links.
    std::map<std::string, fs::path> linked_files() const;
};

}  // namespace kontext
