#include "formats.hpp"

#include <algorithm>

namespace kontext {
namespace {

bool computes_in(const Bundle& bundle, const std::string& compute) {
    return std::any_of(bundle.computes.begin(), bundle.computes.end(),
                       [&](const auto& each) { return each.second == compute; });
}

}  // namespace

bool with_openvino() {
#ifdef KONTEXT_WITH_OPENVINO
    return true;
#else
    return false;
#endif
}

// Met in ONNX Runtime 1.32: its CPU has no Add, MatMul or Conv in bf16, and none of its devices knows E2M1 (NVFP4).
std::string missing_kernels(const Bundle& bundle, const std::string& device) {
    if (bundle.weight_formats.count("nvfp4") != 0) return "ONNX Runtime has no kernels for NVFP4";
    if (device == "cpu" && computes_in(bundle, "bf16")) return "ONNX Runtime has no kernels for bf16 on a CPU";
    return "";
}

std::string formats_taken(const std::string& device, bool bf16) {
    if (device.compare(0, 8, "openvino") == 0) return "takes every format, but no linked weights";
    return "takes " + std::string(bf16 ? "fp32, fp16 and bf16" : "fp32 and fp16") +
           " bundles with weights of every format but NVFP4";
}

std::string refusal(const Bundle& bundle, const std::string& device) {
    const std::string missing = missing_kernels(bundle, device);
    return missing.empty() ? "" : missing + ": " + instead(bundle);
}

std::string instead(const Bundle& bundle) {
    if (missing_kernels(bundle, "cpu").empty()) return "use --device cpu";
    const bool bf16 = computes_in(bundle, "bf16"), nvfp4 = bundle.weight_formats.count("nvfp4") != 0;
    const std::string again = std::string(bf16 ? "--fp32" : "") + (bf16 && nvfp4 ? " and " : "") +
                              (nvfp4 ? "another format, such as --int4" : "");
    const bool other = with_openvino() && bundle.links.empty();
    return (other ? "use --device openvino, or " : "") + ("export the model again with " + again);
}

}  // namespace kontext
