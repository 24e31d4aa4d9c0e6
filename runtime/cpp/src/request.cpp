#include "request.hpp"

#include <algorithm>
#include <cmath>

#include "resize.hpp"

namespace kontext {
namespace {

constexpr std::int64_t max_areas = 16;  // an output of more times the largest preferred size is taken for a typo
constexpr std::size_t max_rows = 1'000'000;

std::int64_t area(Size size) { return std::int64_t{size.width} * size.height; }

std::string text_of(Size size) { return std::to_string(size.width) + "x" + std::to_string(size.height); }

Size checked(Size size, const SamplerSettings& settings) {
    const int multiple = settings.size_multiple;
    for (int side : {size.width, size.height})
        if (side < multiple || side % multiple != 0)
            throw Error("size " + text_of(size) + ": both sides must be multiples of " + std::to_string(multiple));
    std::int64_t largest = 0;
    for (Size each : settings.preferred_sizes) largest = std::max(largest, area(each));
    if (area(size) > max_areas * largest)
        throw Error("size " + text_of(size) + " is more than " + std::to_string(max_areas) +
                    " times as large as this model's pictures (" + std::to_string(largest) + " pixels)");
    return size;
}

Size most_square(const std::vector<Size>& sizes) {
    return *std::min_element(sizes.begin(), sizes.end(), [](Size a, Size b) {
        return std::abs(a.width - a.height) < std::abs(b.width - b.height);
    });
}

void check_picture(const Picture& picture) {
    const auto [width, height] = picture.size;
    if (width < 1 || height < 1 || picture.rgb.size() != 3 * static_cast<std::uint64_t>(area(picture.size)))
        throw Error("a picture of " + text_of(picture.size) + " must have that many pixels of 3 bytes");
    if (static_cast<std::uint64_t>(area(picture.size)) > max_pixels) throw too_large("the picture");
}

}  // namespace

std::vector<Size> Row::shape() const {
    std::vector<Size> sizes = {size};
    for (const Reference& reference : references) sizes.push_back(reference.size);
    return sizes;
}

std::vector<std::vector<std::size_t>> Request::batches() const {
    std::vector<std::vector<std::size_t>> result;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto same = std::find_if(result.begin(), result.end(), [&](const std::vector<std::size_t>& batch) {
            return rows[batch[0]].shape() == rows[i].shape();
        });
        if (same == result.end()) result.push_back({i});
        else same->push_back(i);
    }
    return result;
}

Request build_request(const SamplerSettings& settings, const std::vector<Edit>& edits, int num_images,
                      const EditOptions& options) {
    Request request{{}, options.steps.value_or(settings.steps), options.guidance.value_or(settings.guidance)};
    if (request.steps < 1)
        throw Error("steps must be a whole number of 1 or more, not " + std::to_string(request.steps));
    if (num_images < 1)
        throw Error("num_images must be a whole number of 1 or more, not " + std::to_string(num_images));
    if (!std::isfinite(request.guidance)) throw Error("guidance must be a finite number");
    if (edits.empty()) throw Error("there are no edits: give at least one prompt");
    const std::size_t count = edits.size() * static_cast<std::size_t>(num_images);
    if (count > max_rows) throw Error(std::to_string(count) + " pictures in one call are too many");
    if (options.seed > UINT64_MAX - (count - 1))
        throw Error("a seed is a whole number from 0 to 2^64 - 1, and the last picture's is larger");
    if (options.size) checked(*options.size, settings);
    std::vector<Reference> known;
    for (const Edit& edit : edits) {
        std::vector<Reference> references;
        for (const Picture& picture : edit.references) {
            check_picture(picture);
            Reference reference{&picture, preferred_size(picture.size, settings.preferred_sizes), known.size()};
            const auto same = std::find_if(known.begin(), known.end(), [&](const Reference& each) {
                return each.picture->size == picture.size && each.picture->rgb == picture.rgb;
            });
            if (same == known.end()) known.push_back(reference);
            else reference.index = same->index;
            references.push_back(reference);
        }
        const Size size = options.size         ? *options.size
                          : references.empty() ? most_square(settings.preferred_sizes)
                                               : references[0].size;
        for (int i = 0; i < num_images; ++i)
            request.rows.push_back({&edit, references, options.seed + request.rows.size(), size});
    }
    return request;
}

}  // namespace kontext
