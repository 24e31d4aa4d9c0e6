// Pictures of an edit that is not done, in colours by a linear map instead of the decoder, as runtime/preview.py.
#pragma once

#include <vector>

#include "bundle.hpp"
#include "kontext/kontext.hpp"

namespace kontext {

// The picture of latents [channels, height, width], of `size` pixels: one for each latent. Throws Error if the bundle
// was exported before previews were.
Picture draw_latents(const Bundle& bundle, const std::vector<float>& latents, Size size);

}  // namespace kontext
