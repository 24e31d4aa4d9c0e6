#include "references.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "resize.hpp"

namespace kontext {
namespace {

// Long side to short side. FLUX.1 Kontext's widest preferred size has 2.33; wider pictures are squashed to it.
constexpr double widest = 2.4;

std::string rounded(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", value);
    return text;
}

std::string other_aspect(Size picture, Size encoded, Size output, const SamplerSettings& settings) {
    const std::string note = "the output of " + text_of(output) + " has another aspect than the picture of " +
                             text_of(picture) + ", which is encoded at " + text_of(encoded) +
                             ": the edit may crop or zoom it";
    const Size similar = similar_size(picture, output, settings.size_multiple);
    return similar == output ? note : note + "; an output of " + text_of(similar) + " has its aspect";
}

}  // namespace

bool agrees(Size picture, Size output, Size preferred) {
    return distortion(picture, output) <= std::max(same_aspect, distortion(picture, preferred));
}

std::string checked_method(const std::string& method, const SamplerSettings& settings) {
    if (method.empty()) return settings.reference_method;
    if (!is_reference_method(method))
        throw Error("the reference method must be index, offset or stitch, not '" + method.substr(0, 40) + "'");
    return method;
}

ReferenceSize checked_rule(const std::string& text, const SamplerSettings& settings) {
    if (text.empty()) return {"auto", {}};
    if (text == "auto" || text == "preferred" || text == "output") return {text, {}};
    const auto size = parse_size(text);
    if (!size)
        throw Error("the reference size must be auto, preferred, output or WIDTHxHEIGHT, not '" + text.substr(0, 40) +
                    "'");
    return {"", checked_size(*size, settings, "reference size")};
}

std::vector<Reference> place_references(const std::vector<Picture>& pictures, const std::string& method,
                                        const ReferenceSize& rule, Size output, const SamplerSettings& settings,
                                        std::unique_ptr<const Picture>& canvas, std::vector<std::string>& notes) {
    std::vector<const Picture*> encoded;
    const bool stitched = method == "stitch" && pictures.size() > 1;
    if (stitched) {
        canvas = std::make_unique<const Picture>(stitch(pictures));
        encoded.push_back(canvas.get());
    } else {
        for (const Picture& picture : pictures) encoded.push_back(&picture);
    }
    std::vector<Size> sizes;
    for (const Picture* each : encoded) {
        const Size picture = each->size, preferred = preferred_size(picture, settings.preferred_sizes);
        const bool like_output = rule.rule == "auto" && agrees(picture, output, preferred);
        const Size size = rule.size ? *rule.size : rule.rule == "output" || like_output ? output : preferred;
        // Only the first reference lies on the output; of a canvas or a further one nobody expects its aspect.
        if (rule.rule == "auto" && sizes.empty() && !stitched && !like_output)
            notes.push_back(other_aspect(picture, size, output, settings));
        const double aspect = static_cast<double>(std::max(picture.width, picture.height)) /
                              std::min(picture.width, picture.height);
        if (aspect > widest && distortion(picture, size) > same_aspect)
            notes.push_back(std::string("the ") + (stitched ? "canvas of the stitched references" : "picture") +
                            " of " + text_of(picture) + " is " + rounded(aspect) + ":1, beyond the " + rounded(widest) +
                            ":1 that the model knows: it is squashed to " + text_of(size));
        sizes.push_back(size);
    }
    const std::vector<Place> places = places_of(method, sizes);
    std::vector<Reference> references;
    for (std::size_t i = 0; i < encoded.size(); ++i) references.push_back({encoded[i], sizes[i], places[i], 0});
    return references;
}

std::vector<Place> places_of(const std::string& method, const std::vector<Size>& sizes) {
    std::vector<Place> places;
    int right = 0, bottom = 0;  // of everything placed so far
    for (const Size& size : sizes) {
        if (method != "offset") {
            places.push_back({static_cast<int>(places.size()) + 1, 0, 0});
            continue;
        }
        const bool beside = size.height + bottom > size.width + right;
        const Place place{1, beside ? 0 : bottom, beside ? right : 0};
        right = std::max(right, place.left + size.width);
        bottom = std::max(bottom, place.top + size.height);
        places.push_back(place);
    }
    return places;
}

Picture stitch(const std::vector<Picture>& pictures) {
    const int height = pictures[0].size.height;
    std::vector<double> widths;
    double total = 0;
    for (const Picture& picture : pictures) {
        const double aspect = static_cast<double>(picture.size.width) / picture.size.height;
        widths.push_back(std::max(1.0, std::floor(height * aspect)));
        total += widths.back();
    }
    if (total * height > static_cast<double>(max_pixels)) throw too_large("the canvas of the stitched references");
    Picture canvas{{static_cast<int>(total), height}, {}};
    canvas.rgb.resize(3 * static_cast<std::size_t>(area(canvas.size)));
    const std::size_t line = 3 * static_cast<std::size_t>(canvas.size.width);
    std::size_t left = 0;
    for (std::size_t i = 0; i < pictures.size(); ++i) {
        const Size size{static_cast<int>(widths[i]), height};
        const Picture scaled = pictures[i].size == size ? pictures[i] : resize(pictures[i], size);
        const std::size_t part = 3 * static_cast<std::size_t>(size.width);
        for (std::size_t row = 0; row < static_cast<std::size_t>(height); ++row)
            std::copy_n(&scaled.rgb[row * part], part, &canvas.rgb[row * line + left]);
        left += part;
    }
    return canvas;
}

}  // namespace kontext
