// From a device's name to the backend that runs a bundle there.
#pragma once

#include <memory>
#include <string>

#include "backend.hpp"
#include "bundle.hpp"

namespace kontext {

struct Opened {
    std::unique_ptr<Backend> backend;
    std::string choice;   // what "auto" took, for the user; "" for a device that was asked for
    std::string warning;  // why "auto" took no GPU though the linked ONNX Runtime is for them; usually empty
};

// Throws Error for a device that is not known, is not there, or cannot run the bundle; says what would work. `bundle`
// must outlive the backend. `low_memory`: return memory to the system after each network.
Opened open_backend(const Bundle& bundle, const LoadOptions& options, bool low_memory);

}  // namespace kontext
