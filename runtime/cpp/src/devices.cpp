#include "devices.hpp"

#include <algorithm>

#include "cuda_driver.hpp"
#include "onnxruntime_backend.hpp"
#include "onnxruntime_library.hpp"
#ifdef KONTEXT_WITH_OPENVINO
#include "openvino_backend.hpp"
#endif

namespace kontext {
namespace {

const std::vector<std::string> device_names = {"auto",     "cpu",          "cuda",         "rtx",         "tensorrt",
                                               "openvino", "openvino:cpu", "openvino:gpu", "openvino:npu"};

bool is_openvino(const std::string& device) { return device.compare(0, 8, "openvino") == 0; }

void check_options(const LoadOptions& options) {
    const std::string& device = options.device;
    if (std::find(device_names.begin(), device_names.end(), device) == device_names.end())
        throw Error("device '" + device.substr(0, 40) + "' is not known: choose from " + joined(device_names));
    if (device == "rtx" || device == "tensorrt")
        throw Error("device '" + device +
                    "' runs compiled engines, which the C++ runtime does not: use --device cuda, "
                    "or Python's kontext-edit");
    if (!options.provider.empty() && device != "auto")
        throw Error("--provider chooses the device itself: leave --device '" + device + "' out");
    if (!options.compute.empty() && (!is_openvino(device) || !options.provider.empty()))
        throw Error("--compute needs --device openvino");
}

}  // namespace

std::unique_ptr<Backend> open_backend(const Bundle& bundle, const LoadOptions& options, bool low_memory) {
    check_options(options);
    if (is_openvino(options.device)) {
#ifdef KONTEXT_WITH_OPENVINO
        return std::make_unique<OpenVINOBackend>(bundle, options.device, options, low_memory);
#else
        throw Error("device '" + options.device +
                    "' needs a build with OpenVINO (cmake -DKONTEXT_OPENVINO=ON): use --device cpu");
#endif
    }
    std::optional<Plugin> plugin;
    if (!options.provider.empty()) plugin.emplace(options.provider);
    return std::make_unique<OnnxRuntimeBackend>(bundle, options.device, options.threads, low_memory, std::move(plugin));
}

std::vector<DeviceInfo> list_devices(const std::string& provider) {
    const std::string version = "ONNX Runtime " + onnxruntime_version();
    std::vector<DeviceInfo> result = {{"cpu", "", version}};
    if (has_provider("CUDAExecutionProvider")) result.push_back({"cuda", "", version + ", " + describe_gpu()});
#ifdef KONTEXT_WITH_OPENVINO
    for (DeviceInfo& each : openvino_devices()) result.push_back(std::move(each));
#endif
    if (!provider.empty())
        for (DeviceInfo& each : Plugin::list(provider)) result.push_back(std::move(each));
    return result;
}

}  // namespace kontext
