// What each number of a manifest may be: the table of runtime/manifest_ranges.py, with which a test compares it.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <utility>

namespace kontext {

// Field -> the smallest and the largest value, both allowed.
inline const std::map<std::string, std::pair<double, double>>& ranges() {
    static const std::map<std::string, std::pair<double, double>> table = {
        {"format_version", {1, 1000}},
        {"size", {0, 1125899906842624}},
        {"in_channels", {4, 4096}},
        {"head_dim", {2, 4096}},
        {"axes_dim", {2, 4096}},
        {"theta", {1, 1000000000}},
        {"text_dim", {1, 65536}},
        {"pooled_dim", {1, 65536}},
        {"latent_channels", {1, 1024}},
        {"downscale", {1, 256}},
        {"steps", {1, 1000}},
        {"guidance", {-1000, 1000}},
        {"base_shift", {-20, 20}},
        {"max_shift", {-20, 20}},
        {"base_tokens", {1, 16777216}},
        {"max_tokens", {1, 16777216}},
        {"size_multiple", {2, 4096}},
        {"preferred_sizes", {1, 4096}},
        {"shift", {0, 1000}},
        {"terminal", {0, 1}},
        {"preview", {-1000, 1000}},
        {"opset", {1, 1000}},
        {"max_rank", {1, 1024}},
        {"max_length", {2, 4096}},
        {"pad_id", {0, 2147483647}},
        {"eos_id", {0, 2147483647}},
    };
    return table;
}

constexpr std::size_t most_sizes = 1000;
constexpr std::size_t most_files = 10000;
constexpr std::size_t most_characters = 4096;

}  // namespace kontext
