#include "true_cfg.hpp"

#include <algorithm>
#include <cmath>

#include "number_checks.hpp"

namespace kontext {
namespace {

constexpr double largest_scale = 1000;  // as Python's SCALE_LIMIT

}  // namespace

int TrueCfg::guided(int steps) const { return std::max(1, static_cast<int>(std::floor(steps * until + 0.5))); }

Floats TrueCfg::combine(const Floats& velocity) const {
    Floats result(velocity.size() / 2);
    const float factor = static_cast<float>(scale);
    for (std::size_t i = 0; i < result.size(); ++i) {
        const float negative = velocity[result.size() + i];
        result[i] = negative + factor * (velocity[i] - negative);
    }
    return result;
}

std::optional<TrueCfg> read_cfg(const EditOptions& options, std::vector<std::string>& notes) {
    const double scale = options.true_cfg;
    if (!(scale >= 1 && scale <= largest_scale))  // nor NaN
        throw Error("true_cfg must be a number from 1 to " + shown(largest_scale) + ", not " + shown(scale));
    check_share(options.cfg_until, "cfg_until");
    if (options.negative_prompt && scale > 1) return TrueCfg{scale, options.cfg_until};
    if (options.negative_prompt) notes.push_back("negative_prompt has no effect without a true_cfg above 1, such as 4");
    if (scale > 1)
        notes.push_back("true_cfg " + shown(scale) +
                        " has no effect without a negative_prompt, which may be empty (\"\")");
    else if (options.cfg_until < 1) notes.push_back("cfg_until has no effect without a true_cfg above 1");
    return {};
}

}  // namespace kontext
