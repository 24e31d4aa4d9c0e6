#include "inpainting.hpp"

#include <algorithm>
#include <cmath>

#include "masks.hpp"
#include "number_checks.hpp"
#include "resize.hpp"

namespace kontext {

void check_repaint(const EditOptions& options) {
    check_share(options.strength, "strength");
    if (options.mask_blur < 0 || options.mask_blur > max_blur)
        throw Error("mask_blur must be a whole number of pixels from 0 to " + std::to_string(max_blur) + ", not " +
                    std::to_string(options.mask_blur));
    if (!options.mask && options.mask_blur != 0) throw Error("mask_blur needs a mask");
    if (!options.mask && options.paste_back) throw Error("paste_back needs a mask");
    if (options.init_image && !repaints(options))
        throw Error("init_image needs a mask, or a strength below 1: else nothing of it is used");
}

bool repaints(const EditOptions& options) { return options.mask.has_value() || options.strength < 1; }

std::unique_ptr<const Picture> prepared_mask(const EditOptions& options) {
    if (!options.mask) return nullptr;
    return std::make_unique<const Picture>(blurred(to_grey(*options.mask), options.mask_blur));
}

void note_repaint(const Picture& picture, const Picture* mask, Size output, const SamplerSettings& settings,
                  std::vector<std::string>& notes) {
    if (!agrees(picture.size, output, preferred_size(picture.size, settings.preferred_sizes)))
        notes.push_back("the picture to repaint has " + text_of(picture.size) +
                        ", another aspect than the output of " + text_of(output) + ": it is stretched");
    if (mask != nullptr && distortion(mask->size, picture.size) > same_aspect)
        notes.push_back("the mask of " + text_of(mask->size) + " has another aspect than the picture of " +
                        text_of(picture.size) + ": it is stretched over all of it");
}

int skipped_steps(int steps, double strength) {
    const auto skipped = static_cast<int>(std::floor(steps - std::min(steps * strength, double(steps))));
    if (skipped >= steps)
        throw Error("strength " + shown(strength) + " leaves none of " + std::to_string(steps) + " steps");
    return skipped;
}

void Repainting::add(const Repaint& repaint, const Floats& tokens, const Floats& row, int channels, Grid grid,
                     int downscale) {
    original.insert(original.end(), tokens.begin(), tokens.end());
    noise.insert(noise.end(), row.begin(), row.end());
    if (repaint.mask == nullptr) {
        mask.insert(mask.end(), row.size(), 1.0f);
        return;
    }
    const std::vector<bool> chosen = of_latents(*repaint.mask, downscale);
    Floats latents;
    for (int channel = 0; channel < channels; ++channel) latents.insert(latents.end(), chosen.begin(), chosen.end());
    const Floats packed = pack(latents, channels, grid);
    mask.insert(mask.end(), packed.begin(), packed.end());
}

Floats Repainting::noised(float time) const {
    Floats result(original.size());
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = time * noise[i] + (1.0f - time) * original[i];
    return result;
}

void Repainting::keep(float time, Floats& latents) const {
    const Floats own = noised(time);
    for (std::size_t i = 0; i < own.size(); ++i) latents[i] = (1.0f - mask[i]) * own[i] + mask[i] * latents[i];
}

Picture pasted(const Repaint& repaint, Picture result) {
    if (!repaint.paste_back || repaint.mask == nullptr) return result;
    const Picture own = resize(*repaint.original.picture, result.size);
    for (std::size_t i = 0; i < result.rgb.size(); ++i) {  // in Pillow's integer arithmetic
        const unsigned grey = repaint.mask->rgb[i], sum = own.rgb[i] * (255 - grey) + result.rgb[i] * grey + 128;
        result.rgb[i] = static_cast<std::uint8_t>(((sum >> 8) + sum) >> 8);
    }
    return result;
}

}  // namespace kontext
