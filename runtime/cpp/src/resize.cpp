#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace kontext {
namespace {

constexpr int precision_bits = 32 - 8 - 2;  // of a coefficient; leaves a byte and two bits of overshoot
constexpr double lanczos_support = 3.0;

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= 3.14159265358979323846;
    return std::sin(x) / x;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

// The weights of one output pixel: of input pixels from `first` on.
struct Window {
    int first;
    std::vector<int> weights;
};

std::vector<Window> windows(int from, int to) {
    const double scale = static_cast<double>(from) / to, filter_scale = std::max(scale, 1.0);
    const double support = lanczos_support * filter_scale;
    std::vector<Window> result;
    for (int i = 0; i < to; ++i) {
        const double center = (i + 0.5) * scale;
        const int first = std::max(static_cast<int>(center - support + 0.5), 0);
        const int last = std::min(static_cast<int>(center + support + 0.5), from);
        std::vector<double> weights;
        double sum = 0;
        for (int x = 0; x < last - first; ++x) {
            weights.push_back(lanczos((x + first - center + 0.5) * (1.0 / filter_scale)));
            sum += weights.back();
        }
        Window window{first, {}};
        for (double weight : weights) {
            if (sum != 0.0) weight /= sum;
            window.weights.push_back(static_cast<int>((weight < 0 ? -0.5 : 0.5) + weight * (1 << precision_bits)));
        }
        result.push_back(std::move(window));
    }
    return result;
}

std::uint8_t clipped(int sum) { return static_cast<std::uint8_t>(std::clamp(sum >> precision_bits, 0, 255)); }

std::size_t extent(int side) { return static_cast<std::size_t>(side); }

// Resamples lines of `from` pixels to `to` pixels. `pixel` and `line` are the strides of pixels and of lines.
struct Pass {
    std::size_t lines, in_pixel, in_line, out_pixel, out_line;
};

void run(const std::vector<Window>& windows, const Pass& pass, const std::uint8_t* in, std::uint8_t* out) {
    for (std::size_t line = 0; line < pass.lines; ++line)
        for (std::size_t i = 0; i < windows.size(); ++i) {
            const auto& [first, weights] = windows[i];
            const std::uint8_t* source = in + line * pass.in_line + static_cast<std::size_t>(first) * pass.in_pixel;
            int sums[3] = {1 << (precision_bits - 1), 1 << (precision_bits - 1), 1 << (precision_bits - 1)};
            for (int weight : weights) {
                for (int channel = 0; channel < 3; ++channel) sums[channel] += source[channel] * weight;
                source += pass.in_pixel;
            }
            for (int channel = 0; channel < 3; ++channel)
                out[line * pass.out_line + i * pass.out_pixel + static_cast<std::size_t>(channel)] =
                    clipped(sums[channel]);
        }
}

Picture resize_width(const Picture& picture, int width) {
    if (width == picture.size.width) return picture;
    const std::size_t lines = extent(picture.size.height), in_line = 3 * extent(picture.size.width),
                      out_line = 3 * extent(width);
    Picture result{{width, picture.size.height}, std::vector<std::uint8_t>(lines * out_line)};
    run(windows(picture.size.width, width), {lines, 3, in_line, 3, out_line}, picture.rgb.data(), result.rgb.data());
    return result;
}

Picture resize_height(const Picture& picture, int height) {
    if (height == picture.size.height) return picture;
    const std::size_t lines = extent(picture.size.width), row = 3 * lines;
    Picture result{{picture.size.width, height}, std::vector<std::uint8_t>(extent(height) * row)};
    run(windows(picture.size.height, height), {lines, row, 3, row, 3}, picture.rgb.data(), result.rgb.data());
    return result;
}

}  // namespace

Error too_large(const std::string& what) {
    return Error(what + " has more than " + std::to_string(max_pixels / 1'000'000) +
                 " million pixels: scale it down first");
}

void check_pixels(std::uint64_t width, std::uint64_t height, const std::string& what) {
    if (width * height > max_pixels) throw too_large(what);
    if (std::max(width, height) > max_side)
        throw Error(what + " is " + std::to_string(width) + "x" + std::to_string(height) + ": sides of at most " +
                    std::to_string(max_side) + " pixels are read");
}

Picture resize(const Picture& picture, Size size) {
    const int lost_width = picture.size.width - size.width, lost_height = picture.size.height - size.height;
    // The order of passes decides single steps of brightness. Pillow 13 shrinks the height first if that leaves clearly
    // less work for the other pass (as in 2240 of 2240 resizes of random sizes); older versions always resize the width
    // first.
    if (lost_height > 0 && lost_height > 2 * lost_width)
        return resize_width(resize_height(picture, size.height), size.width);
    return resize_height(resize_width(picture, size.width), size.height);
}

Size preferred_size(Size size, const std::vector<Size>& sizes) {
    const double aspect = static_cast<double>(size.width) / size.height;
    const auto key = [aspect](const Size& each) {
        return std::make_tuple(std::fabs(aspect - static_cast<double>(each.width) / each.height), each.width,
                               each.height);
    };
    return *std::min_element(sizes.begin(), sizes.end(), [&](const Size& a, const Size& b) { return key(a) < key(b); });
}

std::vector<float> to_array(const Picture& picture, Size size) {
    const Picture scaled = picture.size == size ? picture : resize(picture, size);
    const std::size_t area = static_cast<std::size_t>(size.width) * static_cast<std::size_t>(size.height);
    std::vector<float> array(3 * area);
    for (std::size_t i = 0; i < area; ++i)
        for (std::size_t channel = 0; channel < 3; ++channel)
            array[channel * area + i] = static_cast<float>(scaled.rgb[3 * i + channel]) / 255.0f * 2.0f - 1.0f;
    return array;
}

Picture to_picture(const std::vector<float>& array, Size size) {
    const std::size_t area = static_cast<std::size_t>(size.width) * static_cast<std::size_t>(size.height);
    Picture picture{size, std::vector<std::uint8_t>(3 * area)};
    for (std::size_t i = 0; i < area; ++i)
        for (std::size_t channel = 0; channel < 3; ++channel) {
            const float value = std::clamp(array[channel * area + i] * 0.5f + 0.5f, 0.0f, 1.0f) * 255.0f;
            picture.rgb[3 * i + channel] = static_cast<std::uint8_t>(std::nearbyint(value));
        }
    return picture;
}

}  // namespace kontext
