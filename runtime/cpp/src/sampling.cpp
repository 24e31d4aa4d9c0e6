#include "sampling.hpp"

#include <cmath>
#include <random>

#include "sigmas.hpp"

namespace kontext {
namespace {

// Cephes' single-precision polynomials, as avx_mathfun (Giovanni Garberoglio, after Julien Pommier) has them.
constexpr float log_terms[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                               -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                               2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
constexpr float cos_terms[] = {2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f};
constexpr float sin_terms[] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
constexpr float quarter_turn[] = {-0.78515625f, -2.4187564849853515625e-4f, -3.77489497744594108e-8f};
constexpr double two_pi = 6.283185307179586;

// a * b + c, rounded to float once (the product of two floats is exact in double).
float fused(float a, float b, float c) { return static_cast<float>(double{a} * double{b} + double{c}); }

template <std::size_t size>
float polynomial(const float (&terms)[size], float x) {
    float value = terms[0];
    for (std::size_t i = 1; i < size; ++i) value = fused(value, x, terms[i]);
    return value;
}

float log_of(float x) {
    int exponent = 0;
    const float mantissa = std::frexp(x, &exponent);
    const bool small = mantissa < 0.70710678118654752440f;
    const float e = static_cast<float>(exponent) - (small ? 1.0f : 0.0f);
    x = (mantissa - 1.0f) + (small ? mantissa : 0.0f);
    const float square = x * x;
    float y = fused(polynomial(log_terms, x) * x, square, e * -2.12194440e-4f);
    y = fused(square, -0.5f, y);
    return fused(e, 0.693359375f, x + y);
}

// sin and cos of an angle in [0, 2 pi).
std::pair<float, float> sin_cos(float angle) {
    const int octant = (static_cast<int>(angle * 1.27323954473516268615f) + 1) & ~1;
    float x = angle;
    for (float part : quarter_turn) x = fused(static_cast<float>(octant), part, x);
    const float square = x * x;
    const float cos = fused(polynomial(cos_terms, square) * square, square, square * -0.5f) + 1.0f;
    const float sin = fused(polynomial(sin_terms, square) * square, x, x);
    const bool swapped = (octant & 2) != 0;
    return {((octant & 4) != 0 ? -1.0f : 1.0f) * (swapped ? cos : sin),
            (((octant - 2) & 4) == 0 ? -1.0f : 1.0f) * (swapped ? sin : cos)};
}

// A multiple of 2^-24, uniform in [0, 1).
float uniform(std::mt19937& source) { return static_cast<float>(source() & 0xFFFFFF) * 0x1p-24f; }

// Turns 16 uniforms, 8 u and then 8 v, into normals: sqrt(-2 log(1 - u)) * (cos 2 pi v, sin 2 pi v).
void normalize(float* values) {
    for (int i = 0; i < 8; ++i) {
        const float radius = std::sqrt(-2.0f * log_of(1.0f - values[i]));
        const auto [sin, cos] = sin_cos(static_cast<float>(two_pi) * values[i + 8]);
        values[i] = radius * cos;
        values[i + 8] = radius * sin;
    }
}

// A multiple of 2^-53 from two draws, uniform in [0, 1).
double uniform_double(std::mt19937& source) {
    const std::uint64_t high = source(), low = source();
    return static_cast<double>((high << 32 | low) & ((std::uint64_t{1} << 53) - 1)) * 0x1p-53;
}

}  // namespace

Floats randn(std::uint64_t seed, std::size_t size) {
    std::mt19937 source(static_cast<std::uint32_t>(seed));  // seeded by init_genrand, as PyTorch does
    Floats noise(size);
    if (size < 16) {  // fewer are drawn in pairs, in double precision
        for (std::size_t i = 0; i < size; i += 2) {
            const double angle = two_pi * uniform_double(source);
            const double radius = std::sqrt(-2 * std::log1p(-uniform_double(source)));
            noise[i] = static_cast<float>(radius * std::cos(angle));
            if (i + 1 < size) noise[i + 1] = static_cast<float>(radius * std::sin(angle));
        }
        return noise;
    }
    for (float& value : noise) value = uniform(source);
    const std::size_t whole = size - size % 16;
    for (std::size_t i = 0; i < whole; i += 16) normalize(&noise[i]);
    if (whole < size) {  // PyTorch draws the last 16 values again
        for (std::size_t i = size - 16; i < size; ++i) noise[i] = uniform(source);
        normalize(&noise[size - 16]);
    }
    return noise;
}

Floats schedule(int steps, int target_tokens, const SamplerSettings& settings) {
    const double slope = (settings.max_shift - settings.base_shift) / (settings.max_tokens - settings.base_tokens);
    const double mu = target_tokens * slope + (settings.base_shift - slope * settings.base_tokens);
    constexpr double largest_mu = 80;  // FLUX's is 1.15; above 88, e^mu is infinite in float32
    if (std::fabs(mu) > largest_mu)
        throw Error("the time shift for this size is " + std::to_string(mu) +
                    ": the bundle's sampler is not made for it");
    const double last = 1.0 / steps;
    const double distance = steps > 1 ? (last - 1.0) / (steps - 1) : 0;
    Floats times;
    for (int i = 0; i < steps; ++i)
        times.push_back(static_cast<float>(i > 0 && i == steps - 1 ? last : i * distance + 1.0));
    to_sigmas(times, mu, settings.sigmas);
    times.push_back(0.0f);
    return times;
}

Floats pack(const Floats& latents, int channels, Grid grid) {
    Floats tokens;
    tokens.reserve(latents.size());
    const std::size_t width = 2 * static_cast<std::size_t>(grid.columns),
                      area = 2 * width * static_cast<std::size_t>(grid.rows);
    for (std::size_t row = 0; row < static_cast<std::size_t>(grid.rows); ++row)
        for (std::size_t column = 0; column < static_cast<std::size_t>(grid.columns); ++column)
            for (std::size_t channel = 0; channel < static_cast<std::size_t>(channels); ++channel)
                for (std::size_t y = 0; y < 2; ++y)
                    for (std::size_t x = 0; x < 2; ++x)
                        tokens.push_back(latents[channel * area + (2 * row + y) * width + 2 * column + x]);
    return tokens;
}

Floats unpack(const Floats& tokens, int channels, Grid grid) {
    Floats latents(tokens.size());
    const std::size_t width = 2 * static_cast<std::size_t>(grid.columns),
                      area = 2 * width * static_cast<std::size_t>(grid.rows);
    std::size_t at = 0;
    for (std::size_t row = 0; row < static_cast<std::size_t>(grid.rows); ++row)
        for (std::size_t column = 0; column < static_cast<std::size_t>(grid.columns); ++column)
            for (std::size_t channel = 0; channel < static_cast<std::size_t>(channels); ++channel)
                for (std::size_t y = 0; y < 2; ++y)
                    for (std::size_t x = 0; x < 2; ++x)
                        latents[channel * area + (2 * row + y) * width + 2 * column + x] = tokens[at++];
    return latents;
}

std::pair<Floats, Floats> rope_tables(int text_tokens, const std::vector<PlacedGrid>& grids, const Bundle& bundle) {
    std::vector<double> frequencies[3];
    for (std::size_t axis = 0; axis < 3; ++axis)
        for (int j = 0; j < bundle.axes_dim[axis]; j += 2)
            frequencies[axis].push_back(std::pow(bundle.theta, -(double(j) / bundle.axes_dim[axis])));
    Floats cos, sin;
    const auto add = [&](int image, int row, int column) {
        const double position[] = {double(image), double(row), double(column)};
        for (std::size_t axis = 0; axis < 3; ++axis)
            for (double frequency : frequencies[axis]) {
                cos.push_back(static_cast<float>(std::cos(position[axis] * frequency)));
                sin.push_back(static_cast<float>(std::sin(position[axis] * frequency)));
            }
    };
    for (int i = 0; i < text_tokens; ++i) add(0, 0, 0);
    for (const PlacedGrid& each : grids)
        for (int row = 0; row < each.grid.rows; ++row)
            for (int column = 0; column < each.grid.columns; ++column)
                add(each.image, each.row + row, each.column + column);
    return {std::move(cos), std::move(sin)};
}

}  // namespace kontext
