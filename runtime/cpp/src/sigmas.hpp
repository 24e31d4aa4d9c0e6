// How a schedule's evenly spaced times become sigmas: the same float32 numbers as the Python runtime's sigmas.py.
#pragma once

#include <vector>

#include "bundle.hpp"

namespace kontext {

// Turns evenly spaced times, falling from 1, into sigmas. Throws Error if the shift is linear in mu and mu is not above 0.
void to_sigmas(std::vector<float>& times, double mu, const SigmaSettings& settings);

}  // namespace kontext
