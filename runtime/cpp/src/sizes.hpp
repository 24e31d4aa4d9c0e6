// Sizes in pixels: what a bundle's networks take, and what is nearest to a size that they do not.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "bundle.hpp"

namespace kontext {

std::int64_t area(Size size);

// "1024x768"
std::string text_of(Size size);

// `size`. Throws Error, which calls it `name`, if no network takes it.
Size checked_size(Size size, const SamplerSettings& settings, const char* name = "size");

// The size in "1024x768", which may be negative; nothing for any other text.
std::optional<Size> parse_size(const std::string& text);

// How much a picture of `size` is stretched in one direction when it is resized to `other`; 1: not at all.
double distortion(Size size, Size other);

// The size in multiples of `multiple` with about the aspect ratio of `aspect` and the area of `pixels`.
Size similar_size(Size aspect, Size pixels, int multiple);

}  // namespace kontext
