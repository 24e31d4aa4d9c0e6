#include "sizes.hpp"

#include <algorithm>
#include <cmath>

#include "resize.hpp"

namespace kontext {
namespace {

constexpr std::int64_t max_areas = 16;  // an output of more times the largest preferred size is taken for a typo

// The multiple of `multiple` that is nearest to a side, at least one.
int nearest(double side, int multiple) {
    return std::max(1, static_cast<int>(std::floor(side / multiple + 0.5))) * multiple;
}

std::optional<int> whole_number(const std::string& text) {
    const std::string digits = text.substr(text.compare(0, 1, "-") == 0 ? 1 : 0);
    if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string::npos) return {};
    return std::stoi(text);
}

}  // namespace

std::int64_t area(Size size) { return std::int64_t{size.width} * size.height; }

std::string text_of(Size size) { return std::to_string(size.width) + "x" + std::to_string(size.height); }

Size checked_size(Size size, const SamplerSettings& settings, const char* name) {
    const int multiple = settings.size_multiple;
    const std::string what = name + (" " + text_of(size));
    if (std::min(size.width, size.height) < 1) throw Error(what + ": width and height must be above 0");
    std::int64_t largest = 0;
    for (Size each : settings.preferred_sizes) largest = std::max(largest, area(each));
    if (area(size) > max_areas * largest)
        throw Error(what + " is more than " + std::to_string(max_areas) + " times as large as this model's pictures: " +
                    text_of(preferred_size(size, settings.preferred_sizes)) + " is usual");
    if (size.width % multiple != 0 || size.height % multiple != 0)
        throw Error(what + ": both sides must be multiples of " + std::to_string(multiple) + "; the nearest is " +
                    text_of({nearest(size.width, multiple), nearest(size.height, multiple)}));
    return size;
}

std::optional<Size> parse_size(const std::string& text) {
    const std::size_t cross = text.find_first_of("xX");
    if (cross == std::string::npos) return {};
    const auto width = whole_number(text.substr(0, cross)), height = whole_number(text.substr(cross + 1));
    if (!width || !height) return {};
    return Size{*width, *height};
}

double distortion(Size size, Size other) {
    const double ratio = static_cast<double>(std::int64_t{size.width} * other.height) /
                         static_cast<double>(std::int64_t{size.height} * other.width);
    return std::max(ratio, 1 / ratio);
}

Size similar_size(Size aspect, Size pixels, int multiple) {
    const auto count = static_cast<double>(area(pixels));
    return {nearest(std::sqrt(count * aspect.width / aspect.height), multiple),
            nearest(std::sqrt(count * aspect.height / aspect.width), multiple)};
}

}  // namespace kontext
