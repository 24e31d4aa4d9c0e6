#include "request.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "manifest_ranges.hpp"
#include "resize.hpp"

namespace kontext {
namespace {

constexpr std::size_t max_rows = 1'000'000;

Size most_square(const std::vector<Size>& sizes) {
    return *std::min_element(sizes.begin(), sizes.end(), [](Size a, Size b) {
        return std::abs(a.width - a.height) < std::abs(b.width - b.height);
    });
}

void check_picture(const Picture& picture) {
    const auto [width, height] = picture.size;
    if (width < 1 || height < 1 || picture.rgb.size() != 3 * static_cast<std::uint64_t>(area(picture.size)))
        throw Error("a picture of " + text_of(picture.size) + " must have that many pixels of 3 bytes");
    check_pixels(static_cast<std::uint64_t>(width), static_cast<std::uint64_t>(height), "the picture");
}

}  // namespace

bool Row::same_shape(const Row& other) const {
    return size == other.size && repaint.has_value() == other.repaint.has_value() &&
           std::equal(references.begin(), references.end(), other.references.begin(),
                                            other.references.end(), [](const Reference& a, const Reference& b) {
                                                return a.size == b.size && a.place == b.place;
                                            });
}

std::vector<std::vector<std::size_t>> Request::batches() const {
    std::vector<std::vector<std::size_t>> result;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto same = std::find_if(result.begin(), result.end(), [&](const std::vector<std::size_t>& batch) {
            return rows[batch[0]].same_shape(rows[i]);
        });
        if (same == result.end()) result.push_back({i});
        else same->push_back(i);
    }
    return result;
}

Request build_request(const SamplerSettings& settings, const std::vector<Edit>& edits, int num_images,
                      const EditOptions& options) {
    Request request{{}, options.steps.value_or(settings.steps), options.guidance.value_or(settings.guidance), 0, {}, {}};
    if (request.steps < 1)
        throw Error("steps must be a whole number of 1 or more, not " + std::to_string(request.steps));
    if (num_images < 1)
        throw Error("num_images must be a whole number of 1 or more, not " + std::to_string(num_images));
    const auto [least, most] = ranges().at("guidance");
    if (!(least <= request.guidance && request.guidance <= most))  // nor NaN
        throw Error("guidance must be a number from -1000 to 1000");
    if (edits.empty()) throw Error("there are no edits: give at least one prompt");
    const std::size_t count = edits.size() * static_cast<std::size_t>(num_images);
    if (count > max_rows) throw Error(std::to_string(count) + " pictures in one call are too many");
    if (options.seed > UINT64_MAX - (count - 1))
        throw Error("a seed is a whole number from 0 to 2^64 - 1, and the last picture's is larger");
    if (options.size) checked_size(*options.size, settings);
    const std::string method = checked_method(options.reference_method, settings);
    ReferenceSize rule = checked_rule(options.reference_size, settings);
    // Without a size the output takes its own from the first reference, not the references theirs from it.
    if (rule.rule == "auto" && !options.size) rule.rule = "preferred";
    check_repaint(options);
    for (const auto& picture : {options.mask, options.init_image})
        if (picture) check_picture(*picture);
    request.skipped = skipped_steps(request.steps, options.strength);
    std::vector<std::string> notes;
    request.cfg = read_cfg(options, notes);
    const std::unique_ptr<const Picture> mask = prepared_mask(options);
    if (request.guidance < 0) {
        std::ostringstream number;
        number << request.guidance;
        notes.push_back("guidance " + number.str() + " is below 0, which the model was not trained with: 2.5 is usual");
    }
    const auto empty = [](const Edit& edit) { return edit.prompt.find_first_not_of(" \t\n\v\f\r") == std::string::npos; };
    if (std::any_of(edits.begin(), edits.end(), empty)) notes.push_back("the prompt is empty: say what to change");
    std::vector<Reference> known;
    // Gives what is encoded its index, which pictures of the same pixels and size share.
    const auto identify = [&known](Reference& reference) {
        const auto same = std::find_if(known.begin(), known.end(), [&](const Reference& each) {
            return each.size == reference.size && each.picture->size == reference.picture->size &&
                   each.picture->rgb == reference.picture->rgb;
        });
        reference.index = same == known.end() ? known.size() : same->index;
        if (same == known.end()) known.push_back(reference);
        else reference.picture = same->picture;
    };
    std::vector<std::pair<Size, const Picture*>> fitted;  // the mask by the output's size
    for (const Edit& edit : edits) {
        for (const Picture& picture : edit.references) check_picture(picture);
        const Picture* base = options.init_image          ? &*options.init_image
                              : edit.references.empty() ? nullptr
                                                        : &edit.references[0];
        const Size size = options.size      ? *options.size
                          : base == nullptr ? most_square(settings.preferred_sizes)
                                            : preferred_size(base->size, settings.preferred_sizes);
        std::unique_ptr<const Picture> canvas;
        std::vector<Reference> references =
            place_references(edit.references, method, rule, size, settings, canvas, notes);
        for (Reference& reference : references) identify(reference);
        if (canvas && references[0].picture == canvas.get()) request.canvases.push_back(std::move(canvas));
        std::optional<Repaint> repaint;
        if (repaints(options)) {
            if (base == nullptr)
                throw Error(std::string(mask ? "a mask" : "a strength below 1") +
                            " needs a picture to repaint: give image, or init_image");
            note_repaint(*base, mask.get(), size, settings, notes);
            repaint = Repaint{{base, size, {}, 0}, nullptr, options.paste_back};
            identify(repaint->original);
            if (mask) {
                auto same = std::find_if(fitted.begin(), fitted.end(), [&](const auto& each) { return each.first == size; });
                if (same == fitted.end()) {
                    request.canvases.push_back(std::make_unique<const Picture>(resize(*mask, size)));
                    same = fitted.insert(fitted.end(), {size, request.canvases.back().get()});
                }
                repaint->mask = same->second;
            }
        }
        for (int i = 0; i < num_images; ++i)
            request.rows.push_back({&edit, references, options.seed + request.rows.size(), size, repaint});
    }
    for (auto note = notes.begin(); note != notes.end() && options.warning; ++note)
        if (std::find(notes.begin(), note, *note) == note) options.warning(*note);
    return request;
}

}  // namespace kontext
