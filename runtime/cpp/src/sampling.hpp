// Noise, schedule, packing and RoPE tables: the same float32 numbers as the Python runtime's noise.py, sampler.py,
// tokens.py.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "bundle.hpp"

namespace kontext {

using Floats = std::vector<float>;

// A grid of tokens.
struct Grid {
    int rows, columns;
};

// The tokens of a picture among all positions: its grid, and the position of its first token.
struct PlacedGrid {
    Grid grid;
    int image, row, column;
};

// Normal noise, the same as torch.randn with torch.Generator("cpu").manual_seed(seed), where only the seed's low 32 bits
// matter.
Floats randn(std::uint64_t seed, std::size_t size);

// Times [steps + 1] from 1 (noise) to 0 (picture), shifted as the settings say for this number of target tokens.
Floats schedule(int steps, int target_tokens, const SamplerSettings& settings);

// Latents [channels, 2 rows, 2 columns] to tokens [rows * columns, 4 * channels], and back.
Floats pack(const Floats& latents, int channels, Grid grid);
Floats unpack(const Floats& tokens, int channels, Grid grid);

// Half-width cos and sin [text_tokens + tokens of all grids, head_dim / 2].
std::pair<Floats, Floats> rope_tables(int text_tokens, const std::vector<PlacedGrid>& grids, const Bundle& bundle);

}  // namespace kontext
