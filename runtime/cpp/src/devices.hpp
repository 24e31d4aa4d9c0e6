// From a device's name to the backend that runs a bundle there.
#pragma once

#include <memory>

#include "backend.hpp"
#include "bundle.hpp"

namespace kontext {

// Throws Error for a device that is not known, is not there, or cannot run the bundle; says what would work. `bundle`
// must outlive the backend. `low_memory`: return memory to the system after each network.
std::unique_ptr<Backend> open_backend(const Bundle& bundle, const LoadOptions& options, bool low_memory);

}  // namespace kontext
