// Pictures to the sizes that the model works at, pixel for pixel as Pillow's LANCZOS, and to and from its floats.
#pragma once

#include <vector>

#include "kontext/kontext.hpp"

namespace kontext {

constexpr std::uint64_t max_pixels = 100'000'000;  // larger pictures are taken for decompression bombs

// "what has more than 100 million pixels …"
Error too_large(const std::string& what);

Picture resize(const Picture& picture, Size size);

// The size nearest in aspect ratio, by the rule of FLUX.1 Kontext: least |w/h - w'/h'|, then the narrower.
Size preferred_size(Size size, const std::vector<Size>& sizes);

// A picture at `size` as [3, height, width] in [-1, 1].
std::vector<float> to_array(const Picture& picture, Size size);

// The other way; what is beyond [-1, 1] is clipped.
Picture to_picture(const std::vector<float>& array, Size size);

}  // namespace kontext
