// Masks: which part of a picture is repainted, as grey pictures at the output's size: white is. Python's masks.py says
// more.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kontext/kontext.hpp"

namespace kontext {

constexpr int max_blur = 1000;  // pixels

// Grey of a picture's colours, as Pillow's mode L: all three channels have it.
Picture to_grey(Picture picture);

// A mask that was drawn as transparency: grey is the opacity. Calls `warning` if what is opaque shows something.
Picture grey_of_alpha(Size size, const std::vector<std::uint8_t>& grey, const std::vector<std::uint8_t>& alpha,
                      const std::function<void(const std::string&)>& warning);

// A grey mask blurred by a Gaussian with a radius of `blur` of its own pixels, pixel for pixel as Pillow's.
Picture blurred(Picture mask, int blur);

// Which latents are repainted, row by row: those whose first pixel is white.
std::vector<bool> of_latents(const Picture& mask, int downscale);

// What the user is warned of if a mask leaves nothing to keep, or nothing to repaint; "" otherwise.
std::string note_of(const Picture& mask, int downscale);

}  // namespace kontext
