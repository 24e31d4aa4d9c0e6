// Rewrites a graph that OpenVINO has read into the form that it compiles well, as runtime/backends/openvino/rewrite.py,
// whose notes say why.
#pragma once

#include <memory>

#include <openvino/core/model.hpp>

namespace kontext {

// Rewrites `model` in place. Throws Error if it shifts bytes in a way that OpenVINO computes wrongly.
void rewrite(const std::shared_ptr<ov::Model>& model);

}  // namespace kontext
