// Classifier-free guidance with a negative prompt: Python's true_cfg.py says more.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sampling.hpp"

namespace kontext {

// True CFG of an edit: its scale, above 1, and the share of the steps that use it, from the first on.
struct TrueCfg {
    double scale, until;

    // How many of `steps` steps use it: the nearest whole number, but one at least.
    int guided(int steps) const;

    // The velocity of the rows, of theirs with their prompts and then with the negative one.
    Floats combine(const Floats& velocity) const;
};

// The guidance that the options ask for; what has no effect goes to `notes`. Throws Error for a value out of range.
std::optional<TrueCfg> read_cfg(const EditOptions& options, std::vector<std::string>& notes);

}  // namespace kontext
