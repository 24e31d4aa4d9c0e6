// Runs a bundle's graphs in OpenVINO: each is read, rewritten and compiled at its first use, and has one infer request.
// The graphs of large bundles are compiled again for inputs of other shapes. As runtime/backends/openvino;
// docs/openvino.md lists the properties that are set, and why.
#pragma once

#include <map>
#include <mutex>
#include <string>

#include <openvino/openvino.hpp>

#include "backend.hpp"
#include "bundle.hpp"

namespace kontext {

class OpenVINOBackend : public Backend {
public:
    // `bundle` must outlive this. `device`: openvino, openvino:cpu, openvino:gpu or openvino:npu. Throws Error if
    // OpenVINO has no such device here, or the device does not compute in what `options` want.
    OpenVINOBackend(const Bundle& bundle, const std::string& device, const LoadOptions& options, bool low_memory);

    Outputs run(const std::string& graph, const Inputs& inputs) override;
    void release(const std::string& graph) override;

private:
    ov::AnyMap properties(const std::string& graph) const;
    using Shapes = std::map<std::string, std::vector<std::int64_t>>;  // empty: all
    struct Compiled {
        ov::InferRequest request;
        Shapes shapes;
    };

    bool has_fixed_shapes() const;
    ov::InferRequest& request(const std::string& graph, const Inputs& inputs);
    ov::InferRequest compile(const std::string& graph, const Shapes& shapes);
    void interrupt() noexcept override;

    const Bundle& bundle;
    LoadOptions options;
    bool low_memory;
    ov::Core core;
    std::string device;                           // OpenVINO's name of it
    std::map<std::string, std::string> computes;  // graph → fp32, bf16 or fp16
    std::map<std::string, Compiled> compiled;
    std::mutex running;  // guards `current`
    ov::InferRequest* current = nullptr;
};

// OpenVINO's devices here.
std::vector<DeviceInfo> openvino_devices();

}  // namespace kontext
