#include "masks.hpp"

#include <algorithm>
#include <cmath>

namespace kontext {
namespace {

constexpr int half = 128;  // the least grey that counts as white
constexpr int passes = 3;  // of a box that together are almost a Gaussian

std::size_t at(int index) { return static_cast<std::size_t>(index); }

bool is_white(const Picture& mask, std::size_t pixel) { return mask.rgb[3 * pixel] >= half; }

// The radius of the box, in float as Pillow has it (Gwosdek et al. 2011, equations 7, 11 and 14).
float box_radius(float radius) {
    const float variance = radius * radius / passes;
    const auto length = static_cast<float>(std::sqrt(12.0 * double{variance} + 1.0));
    const auto whole = static_cast<float>(std::floor((double{length} - 1.0) / 2.0));
    auto part = static_cast<float>(double{2 * whole + 1} * (double{whole * (whole + 1)} - 3.0 * double{variance}));
    part /= 6 * (variance - (whole + 1) * (whole + 1));
    return whole + part;
}

// Means over a box of lines of `size` values, `stride` apart; a box's ends count by the radius' fraction, and beyond a
// line its last values go on.
void blur_line(std::uint8_t* values, int size, std::size_t stride, float box, std::vector<std::uint8_t>& line) {
    const int radius = static_cast<int>(box), last = size - 1;
    const auto inner = static_cast<std::uint32_t>(static_cast<float>(1 << 24) / (box * 2 + 1));
    const std::uint32_t outer = ((1u << 24) - static_cast<std::uint32_t>(radius * 2 + 1) * inner) / 2;
    for (int pass = 0; pass < passes; ++pass) {
        for (int x = 0; x < size; ++x) line[at(x)] = values[at(x) * stride];
        const auto value = [&](int x) { return std::uint32_t{line[at(std::clamp(x, 0, last))]}; };
        std::uint32_t sum = 0;
        for (int x = -radius - 1; x < radius; ++x) sum += value(x);
        for (int x = 0; x < size; ++x) {
            sum += value(x + radius) - value(x - radius - 1);
            const std::uint32_t mean = sum * inner + (value(x - radius - 1) + value(x + radius + 1)) * outer;
            values[at(x) * stride] = static_cast<std::uint8_t>((mean + (1u << 23)) >> 24);
        }
    }
}

}  // namespace

Picture to_grey(Picture picture) {
    for (std::size_t i = 0; i + 2 < picture.rgb.size(); i += 3) {
        std::uint8_t* rgb = &picture.rgb[i];
        const unsigned grey = (rgb[0] * 19595u + rgb[1] * 38470u + rgb[2] * 7471u + 0x8000u) >> 16;
        std::fill_n(rgb, 3, static_cast<std::uint8_t>(grey));
    }
    return picture;
}

Picture grey_of_alpha(Size size, const std::vector<std::uint8_t>& grey, const std::vector<std::uint8_t>& alpha,
                      const std::function<void(const std::string&)>& warning) {
    Picture mask{size, {}};
    mask.rgb.reserve(3 * alpha.size());
    int least = 256, most = -1;  // of what is opaque
    for (std::size_t i = 0; i < alpha.size(); ++i) {
        mask.rgb.insert(mask.rgb.end(), 3, alpha[i]);
        if (alpha[i] != 255) continue;
        least = std::min<int>(least, grey[i]);
        most = std::max<int>(most, grey[i]);
    }
    if (warning && least < most)
        warning(
            "the mask is taken from its transparency: what is opaque is repainted. If it is a picture with a hole where "
            "to edit, invert its transparency");
    return mask;
}

Picture blurred(Picture mask, int blur) {
    if (blur == 0) return mask;
    const float box = box_radius(static_cast<float>(blur));
    const auto [width, height] = mask.size;
    std::vector<std::uint8_t> grey(mask.rgb.size() / 3), line(at(std::max(width, height)));
    for (std::size_t i = 0; i < grey.size(); ++i) grey[i] = mask.rgb[3 * i];
    for (int row = 0; row < height; ++row) blur_line(&grey[at(row) * at(width)], width, 1, box, line);
    for (int column = 0; column < width; ++column) blur_line(&grey[at(column)], height, at(width), box, line);
    for (std::size_t i = 0; i < grey.size(); ++i) std::fill_n(&mask.rgb[3 * i], 3, grey[i]);
    return mask;
}

std::vector<bool> of_latents(const Picture& mask, int downscale) {
    std::vector<bool> chosen;
    for (int row = 0; row < mask.size.height; row += downscale)
        for (int column = 0; column < mask.size.width; column += downscale)
            chosen.push_back(is_white(mask, at(row) * at(mask.size.width) + at(column)));
    return chosen;
}

std::string note_of(const Picture& mask, int downscale) {
    const std::vector<bool> chosen = of_latents(mask, downscale);
    if (std::all_of(chosen.begin(), chosen.end(), [](bool each) { return each; }))
        return "the mask is white everywhere: all of the picture is repainted";
    if (std::any_of(chosen.begin(), chosen.end(), [](bool each) { return each; })) return "";
    for (std::size_t i = 0; 3 * i < mask.rgb.size(); ++i)
        if (is_white(mask, i))
            return "the mask's white parts are too small: the model repaints squares of " + std::to_string(downscale) +
                   " pixels, and nothing is repainted";
    return "the mask is black: nothing is repainted; white is";
}

}  // namespace kontext
