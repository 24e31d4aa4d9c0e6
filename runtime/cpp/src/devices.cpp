#include "devices.hpp"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "cuda_driver.hpp"
#include "formats.hpp"
#include "onnxruntime_backend.hpp"
#include "onnxruntime_library.hpp"
#ifdef KONTEXT_WITH_OPENVINO
#include "openvino_backend.hpp"
#endif

namespace kontext {
namespace {

constexpr int bf16_capability = 80;  // lowest compute capability, times ten, of GPUs that compute in bf16

const std::vector<std::string> device_names = {"auto",     "cpu",          "cuda",         "nv-rtx",
                                               "webgpu",   "migraphx",     "rtx",          "tensorrt",
                                               "openvino", "openvino:cpu", "openvino:gpu", "openvino:npu"};

bool is_openvino(const std::string& device) { return device.compare(0, 8, "openvino") == 0; }

void check_options(const LoadOptions& options) {
    const std::string& device = options.device;
    if (std::find(device_names.begin(), device_names.end(), device) == device_names.end())
        throw Error("device '" + device.substr(0, 40) + "' is not known: choose from " + joined(device_names));
    if (device == "rtx" || device == "tensorrt")
        throw Error("device '" + device +
                    "' runs compiled engines, which the C++ runtime does not: use --device cuda or nv-rtx, or Python's "
                    "kontext-edit");
    if (!options.provider.empty() && device != "auto")
        throw Error("--provider and --device " + device + " both say what runs the graphs: leave one out");
    if (!options.compute.empty() && (!is_openvino(device) || !options.provider.empty()))
        throw Error("--compute needs --device openvino");
}

std::unique_ptr<Backend> on_onnxruntime(const Bundle& bundle, const LoadOptions& options, const std::string& device,
                                        bool low_memory, bool automatic = false) {
    std::optional<Plugin> plugin;
    if (!options.provider.empty()) plugin.emplace(options.provider);
    else if (published.count(device) != 0) plugin = Plugin::of_device(device);
    return std::make_unique<OnnxRuntimeBackend>(bundle, device, options.threads, low_memory, automatic,
                                                std::move(plugin));
}

std::unique_ptr<Backend> on_openvino([[maybe_unused]] const Bundle& bundle, const std::string& device,
                                     [[maybe_unused]] const LoadOptions& options, [[maybe_unused]] bool low_memory) {
#ifdef KONTEXT_WITH_OPENVINO
    return std::make_unique<OpenVINOBackend>(bundle, device, options, low_memory);
#else
    throw Error("device '" + device + "' needs a build with OpenVINO (cmake -DKONTEXT_OPENVINO=ON): use --device cpu");
#endif
}

std::uint64_t largest_network(const Bundle& bundle) {
    std::uint64_t largest = 0;
    for (const auto& [name, entry] : bundle.graphs) {
        std::error_code code;
        const auto size = fs::file_size(entry.weights, code);
        if (!code) largest = std::max<std::uint64_t>(largest, size);
    }
    return largest;
}

// Why a GPU does not run a bundle in ONNX Runtime's CUDA provider; "" if it does.
std::string cuda_refusal(const Bundle& bundle) {
    const std::optional<Gpu> gpu = find_gpu();
    if (!gpu) return describe(gpu);
    const std::string missing = missing_kernels(bundle, "cuda");
    if (!missing.empty()) return missing;
    const bool bf16 = std::any_of(bundle.computes.begin(), bundle.computes.end(),
                                  [](const auto& each) { return each.second == "bf16"; });
    if (bf16 && gpu->capability < bf16_capability)
        return "the bundle computes in bf16, which sm_" + std::to_string(gpu->capability) + " does not";
    if (largest_network(bundle) > gpu->memory) return "its largest network does not fit " + describe(gpu);
    return "";
}

// Whether this processor multiplies bf16 matrices faster than fp32 ones (AMX or AVX512-BF16).
bool has_bf16_units() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line, word; std::getline(file, line);) {
        if (line.compare(0, 5, "flags") != 0) continue;
        for (std::istringstream words(line); words >> word;)
            if (word == "amx_bf16" || word == "avx512_bf16") return true;
        return false;
    }
    return false;
}

// OpenVINO, if it runs what ONNX Runtime's CPU does not, or runs it faster; as openvino_on_cpu of
// runtime/backends/choose.py.
std::optional<Opened> fastest_in_openvino(const Bundle& bundle, LoadOptions options, bool low_memory) {
    if (!with_openvino() || !bundle.links.empty()) return std::nullopt;
    const bool units = has_bf16_units();
    const bool quantized = std::any_of(bundle.weight_formats.begin(), bundle.weight_formats.end(),
                                       [](const std::string& each) { return each != "fp32"; });
    const bool faster = units && quantized && bundle.input_formats.count("int8") == 0;
    if (!faster && missing_kernels(bundle, "cpu").empty()) return std::nullopt;
    const bool narrow = units && std::all_of(bundle.computes.begin(), bundle.computes.end(),
                                             [](const auto& each) { return each.second == "fp32"; });
    if (narrow) options.compute = "bf16";
    return Opened{on_openvino(bundle, "openvino", options, low_memory), narrow ? "OpenVINO in bf16" : "OpenVINO", ""};
}

// The fastest way that works here, in the order of runtime/backends/choose.py.
Opened fastest(const Bundle& bundle, const LoadOptions& options, bool low_memory) {
    bundle.linked_files();  // links that do not hold are the bundle's fault, whatever would run it
    std::string warning;
    const auto on_plugin = [&](const std::string& device) -> std::optional<Opened> {
        if (find_library(device).empty() || !missing_kernels(bundle, device).empty()) return std::nullopt;
        try {
            return Opened{on_onnxruntime(bundle, options, device, low_memory),
                          "ONNX Runtime's plug-in for " + published.at(device).title, ""};
        } catch (const Error& error) {
            warning = error.what();
            return std::nullopt;
        }
    };
    if (auto opened = on_plugin("nv-rtx")) return std::move(*opened);
    if (has_provider("CUDAExecutionProvider")) {
        const std::string reason = cuda_refusal(bundle);
        if (reason.empty())
            return {on_onnxruntime(bundle, options, "cuda", low_memory, true), "ONNX Runtime's CUDA provider", ""};
        warning = "no usable GPU, running on the CPU: " + reason;
    }
    for (const char* device : {"migraphx", "webgpu"})
        if (auto opened = on_plugin(device)) return std::move(*opened);
    if (auto opened = fastest_in_openvino(bundle, options, low_memory)) {
        opened->warning = warning;
        return std::move(*opened);
    }
    return {on_onnxruntime(bundle, options, "cpu", low_memory), "ONNX Runtime on the CPU", warning};
}

}  // namespace

Opened open_backend(const Bundle& bundle, const LoadOptions& options, bool low_memory) {
    check_options(options);
    if (!options.provider.empty()) return {on_onnxruntime(bundle, options, "plug-in", low_memory), "", ""};
    if (options.device == "auto") return fastest(bundle, options, low_memory);
    if (is_openvino(options.device)) return {on_openvino(bundle, options.device, options, low_memory), "", ""};
    return {on_onnxruntime(bundle, options, options.device, low_memory), "", ""};
}

std::vector<DeviceInfo> list_devices(const std::string& provider) {
    const std::string version = "ONNX Runtime " + onnxruntime_version();
    std::vector<DeviceInfo> result = {{"cpu", "", version + "; " + formats_taken("cpu", false)}};
    if (has_provider("CUDAExecutionProvider")) {
        const std::optional<Gpu> gpu = find_gpu();
        const std::string takes = gpu ? "; " + formats_taken("cuda", gpu->capability >= bf16_capability) : "";
        result.push_back({"cuda", "", version + ", " + describe(gpu) + takes});
    }
    for (const auto& [device, entry] : published) {
        const std::string library = find_library(device);
        if (library.empty()) continue;
        try {
            for (DeviceInfo& each : Plugin::list(library))
                result.push_back({device, "", each.description + "; " + formats_taken(device, true)});
        } catch (const Error& error) {
            result.push_back({device, "", error.what()});
        }
    }
#ifdef KONTEXT_WITH_OPENVINO
    for (DeviceInfo& each : openvino_devices()) {
        each.description += "; " + formats_taken(each.device, true);
        result.push_back(std::move(each));
    }
#endif
    if (!provider.empty())
        for (DeviceInfo& each : Plugin::list(provider)) result.push_back(std::move(each));
    return result;
}

}  // namespace kontext
