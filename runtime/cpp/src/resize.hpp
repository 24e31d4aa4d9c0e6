// Resizing to the model's sizes, pixel for pixel as Pillow's LANCZOS, and conversion to and from the model's floats.
#pragma once

#include <vector>

#include "kontext/kontext.hpp"

namespace kontext {

constexpr std::uint64_t max_pixels = 100'000'000;  // larger pictures are refused as decompression bombs

constexpr std::uint64_t max_side = 32'768;  // of a picture

// Throws Error for a picture of more than max_pixels or with a side above max_side.
void check_pixels(std::uint64_t width, std::uint64_t height, const std::string& what);

// "what has more than 100 million pixels …"
Error too_large(const std::string& what);

Picture resize(const Picture& picture, Size size);

// The size with the nearest aspect ratio, as FLUX.1 Kontext chooses it: least |w/h - w'/h'|, then the narrower.
Size preferred_size(Size size, const std::vector<Size>& sizes);

// A picture at `size` as [3, height, width] in [-1, 1].
std::vector<float> to_array(const Picture& picture, Size size);

// The inverse; values are clipped to [-1, 1].
Picture to_picture(const std::vector<float>& array, Size size);

}  // namespace kontext
