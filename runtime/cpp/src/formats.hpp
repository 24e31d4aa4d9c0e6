// What ONNX Runtime has no kernels for, known from a bundle's formats before anything is loaded: as
// runtime/backends/runnable.py.
#pragma once

#include <string>

#include "bundle.hpp"

namespace kontext {

// What ONNX Runtime lacks for the bundle on a device, "cpu" or another, in words; "" if it has all.
std::string missing_kernels(const Bundle& bundle, const std::string& device);

// Which bundles a device takes, for people; `bf16`: whether it computes in it.
std::string formats_taken(const std::string& device, bool bf16);

// One line: what is missing on a device, and what would work; "" if nothing is missing.
std::string refusal(const Bundle& bundle, const std::string& device);

// Whether this build has OpenVINO.
bool with_openvino();

// What runs the bundle without a GPU, as the end of a sentence.
std::string instead(const Bundle& bundle);

}  // namespace kontext
