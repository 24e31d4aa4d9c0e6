// Reference pictures: the size that each is encoded at, and where its tokens stand among all positions. Python's
// references.py says what the methods are.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sizes.hpp"

namespace kontext {

// Pictures are resized to the output's size if that stretches them by no more than this, or than the preferred size
// would.
constexpr double same_aspect = 1.03;

// Whether the output's size stretches a picture no more than same_aspect, or than its preferred size does.
bool agrees(Size picture, Size output, Size preferred);

// The position of a reference's first token: its image index, and the row and column in pixels.
struct Place {
    int image, top, left;
    bool operator==(const Place& other) const {
        return image == other.image && top == other.top && left == other.left;
    }
};

// A picture, the size to encode it at, and its place. Pictures with the same pixels and size have the same index.
struct Reference {
    const Picture* picture;
    Size size;
    Place place;
    std::size_t index;
};

// What references are encoded at: a size, or by the rule auto, preferred or output.
struct ReferenceSize {
    std::string rule;
    std::optional<Size> size;
};

// The options' method, or the bundle's if they name none. Throws Error if there is no such method.
std::string checked_method(const std::string& method, const SamplerSettings& settings);

// "auto", "preferred", "output" or "1024x768" (empty: auto). Throws Error for any other text, or a size that no network
// takes.
ReferenceSize checked_rule(const std::string& text, const SamplerSettings& settings);

// The references that an edit's pictures become; a canvas that is made of them goes to `canvas`, and what the user
// should be warned of to `notes`. `index` is not set.
std::vector<Reference> place_references(const std::vector<Picture>& pictures, const std::string& method,
                                        const ReferenceSize& rule, Size output, const SamplerSettings& settings,
                                        std::unique_ptr<const Picture>& canvas, std::vector<std::string>& notes);

// The places of references of these sizes, in order.
std::vector<Place> places_of(const std::string& method, const std::vector<Size>& sizes);

// Pictures side by side, scaled to the first one's height; widths are rounded down.
Picture stitch(const std::vector<Picture>& pictures);

}  // namespace kontext
