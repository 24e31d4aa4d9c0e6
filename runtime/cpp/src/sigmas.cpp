#include "sigmas.hpp"

#include <cmath>

namespace kontext {
namespace {

constexpr double karras_rho = 7;    // Karras et al. 2022
constexpr double beta_shape = 0.6;  // both parameters, in "Beta Sampling is All You Need" (Lee et al. 2024)

// The beta distribution's quantile: x with I_x(a, a) = p. For x <= 1/2, I_x(a, b) = x^a / B(a, b) * sum over n of
// (1 - b)(2 - b)...(n - b) / n! * x^n / (a + n), and I is symmetric. In y = x^a it is almost straight, so a few of
// Newton's steps are exact.
double beta_quantile(double p) {
    if (p > 0.5) return 1 - beta_quantile(1 - p);
    constexpr double a = beta_shape;
    const double whole = std::tgamma(a) * std::tgamma(a) / std::tgamma(2 * a);
    double y = p * a * whole;
    for (int step = 0; step < 8; ++step) {
        const double x = std::pow(y, 1 / a);
        double term = 1, total = 0;
        for (int n = 0; n < 60; ++n) {
            total += term / (a + n);
            term *= x * (n + 1 - a) / (n + 1);
        }
        y -= (y * total - p * whole) * a / std::pow(1 - x, a - 1);
    }
    return std::pow(y, 1 / a);
}

// Sigma number `i` of `count` between the same ends.
double spaced(double first, double last, std::size_t i, std::size_t count, const std::string& spacing) {
    const auto between = [&](double from, double to) {  // as numpy.linspace
        if (i == 0) return from;
        return i == count - 1 ? to : static_cast<double>(i) * ((to - from) / static_cast<double>(count - 1)) + from;
    };
    if (spacing == "karras") {
        const double start = std::pow(first, 1 / karras_rho), stop = std::pow(last, 1 / karras_rho);
        return std::pow(start + between(0, 1) * (stop - start), karras_rho);
    }
    if (spacing == "exponential") return std::exp(between(std::log(first), std::log(last)));
    return last + beta_quantile(1 - between(0, 1)) * (first - last);
}

}  // namespace

void to_sigmas(std::vector<float>& times, double mu, const SigmaSettings& settings) {
    if (settings.time_shift == "constant") {
        const float shift = static_cast<float>(settings.shift), more = static_cast<float>(settings.shift - 1);
        for (float& t : times) t = shift * t / (1.0f + more * t);
    } else {
        const float shift = static_cast<float>(settings.time_shift == "linear" ? mu : std::exp(mu));
        if (shift <= 0) throw Error("the time shift for this size is " + std::to_string(shift) + ", which must be above 0");
        for (float& t : times) t = shift / (shift + (1.0f / t - 1.0f));
    }
    if (settings.terminal > 0 && times.size() > 1) {  // a single sigma is 1, and cannot be stretched
        const float scale = (1.0f - times.back()) / static_cast<float>(1 - settings.terminal);
        for (float& t : times) t = 1.0f - (1.0f - t) / scale;
    }
    if (settings.spacing == "uniform") return;
    const double first = times.front(), last = times.back();
    for (std::size_t i = 0; i < times.size(); ++i)
        times[i] = static_cast<float>(spaced(first, last, i, times.size(), settings.spacing));
}

}  // namespace kontext
