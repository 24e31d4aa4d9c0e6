#include "onnxruntime_backend.hpp"

#include <malloc.h>

#include <algorithm>
#include <memory>
#include <regex>

#include "formats.hpp"
#include "graph_file.hpp"
#include "onnxruntime_library.hpp"
#include "regular_file.hpp"

namespace kontext {
namespace {

constexpr const char* cuda_provider = "CUDAExecutionProvider";

const Ort::MemoryInfo& host_memory() {
    static const Ort::MemoryInfo info = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    return info;
}

Ort::Value value_of(const Input& input) {
    void* data = const_cast<void*>(input.data);  // ONNX Runtime only reads it
    if (input.type == Input::Type::int64)
        return Ort::Value::CreateTensor<std::int64_t>(host_memory(), static_cast<std::int64_t*>(data), input.count(),
                                                      input.shape.data(), input.shape.size());
    return Ort::Value::CreateTensor<float>(host_memory(), static_cast<float*>(data), input.count(), input.shape.data(),
                                           input.shape.size());
}

// Throws Error if this ONNX Runtime lacks the device.
void check_there(const std::string& device, const Bundle& bundle) {
    if (device == "cuda" && !has_provider(cuda_provider))
        throw Error("device 'cuda' needs ONNX Runtime's " + std::string(cuda_provider) + ", which the linked version " +
                    onnxruntime_version() + " does not have (it has " + joined(providers()) +
                    "): link one that has it, such as the onnxruntime-gpu wheel's; or " + instead(bundle));
}

void append_cuda(Ort::SessionOptions& options) {
    const OrtApi& api = Ort::GetApi();
    OrtCUDAProviderOptionsV2* made = nullptr;
    Ort::ThrowOnError(api.CreateCUDAProviderOptions(&made));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api.ReleaseCUDAProviderOptions)> cuda(
        made, api.ReleaseCUDAProviderOptions);
    // The default doubles each extension of the arena, and an exhaustive search of convolutions takes seconds.
    const char* keys[] = {"arena_extend_strategy", "cudnn_conv_algo_search"};
    const char* values[] = {"kSameAsRequested", "HEURISTIC"};
    Ort::ThrowOnError(api.UpdateCUDAProviderOptions(cuda.get(), keys, values, std::size(keys)));
    options.AppendExecutionProvider_CUDA_V2(*cuda);
}

// CUDA's own words in ONNX Runtime's message, such as "no CUDA-capable device is detected", or the library that cannot
// be loaded; else the first line.
std::string reason_of(const std::exception& error) {
    const std::string text = error.what();
    std::smatch found;
    static const std::regex failure("CU(?:DA|BLAS|DNN) failure \\d+: ([^;]+?) *;"), library("with error: ([^:\n]+):");
    if (std::regex_search(text, found, failure)) return found[1];
    if (std::regex_search(text, found, library)) return found[1].str() + " cannot be loaded";
    return first_line(error);
}

bool is_exhausted(const std::string& text) {
    static const std::regex words(
        "Failed to allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED|bad_alloc|bad allocation");
    return std::regex_search(text, words);
}

}  // namespace

OnnxRuntimeBackend::OnnxRuntimeBackend(const Bundle& bundle, const std::string& device, int threads, bool low_memory,
                                       bool automatic, std::optional<Plugin> plugin)
    : bundle(bundle),
      device(device),
      automatic(automatic),
      threads(threads > 0 ? threads : allowed_cores()),
      low_memory(low_memory),
      plugin(std::move(plugin)),
      run_options((environment(), Ort::RunOptions())) {
    run_options.SetRunLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
    check_there(device, bundle);
    refuse_missing_kernels();
    for (const auto& [name, path] : bundle.linked_files()) weights.emplace(name, MappedFile(path));
}

void OnnxRuntimeBackend::refuse_missing_kernels() const {
    const std::string text = refusal(bundle, device);
    if (!text.empty()) throw Error(text);
}

OnnxRuntimeBackend::Loaded& OnnxRuntimeBackend::loaded(const std::string& graph) {
    for (;;) {
        const auto found = sessions.find(graph);
        if (found != sessions.end()) return found->second;
        try {
            Loaded made{created(graph), {}, std::nullopt, {}};
            Ort::AllocatorWithDefaultOptions allocator;
            for (std::size_t i = 0; i < made.session.GetOutputCount(); ++i)
                made.outputs.emplace_back(made.session.GetOutputNameAllocated(i, allocator).get());
            if (device == "cuda") made.binding.emplace(made.session);
            return sessions.emplace(graph, std::move(made)).first->second;
        } catch (const Ort::Exception& error) {
            fall_back(explained(bundle.graphs.at(graph).path.string() + " cannot be loaded", error));
        }
    }
}

Ort::Session OnnxRuntimeBackend::created(const std::string& graph) {
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
    if (threads > 0) options.SetIntraOpNumThreads(threads);
    if (low_memory) options.DisableCpuMemArena().DisableMemPattern();
    if (!weights.empty()) {
        std::vector<std::basic_string<ORTCHAR_T>> names;
        std::vector<char*> buffers;
        std::vector<std::size_t> sizes;
        for (const auto& [name, file] : weights) {
            names.push_back(name);
            buffers.push_back(file.data());
            sizes.push_back(file.size());
        }
        options.AddExternalInitializersFromFilesInMemory(names, buffers, sizes);
    }
    if (device == "cuda") append_cuda(options);
    if (plugin) plugin->append(options);
    adjust(options);
    const fs::path& path = bundle.graphs.at(graph).path;
    const std::string data = bundle.graph_bytes(graph);
    // The graph is passed as the bytes that were checked; weights are found beside its file.
    options.AddConfigEntry("session.model_external_initializers_file_folder_path",
                           path.parent_path().empty() ? "." : path.parent_path().c_str());
    // Else a session's threads spin for 40 ms after a run, on the cores that the next graph's session wants.
    options.AddConfigEntry("session.force_spinning_stop", "1");
    // Where x86 has no VNNI, ONNX Runtime adds products of INT8 in 16 bits, which saturate, unless it is asked not to.
    // Not for graphs with DequantizeLinear, whose packed weights it would rewrite.
    if (device == "cpu" && data.find("MatMulInteger") != std::string::npos &&
        data.find("DequantizeLinear") == std::string::npos)
        options.AddConfigEntry("session.x64quantprecision", "1");
    if (plugin) return on_plugin(path, data, options);
    try {
        return Ort::Session(environment(), data.data(), data.size(), options);
    } catch (const Ort::Exception& error) {
        // ONNX Runtime before 1.32 refuses products of FP8 that it fused into INT8's operator itself. It runs them
        // without fusions of quantized operators, which other formats need.
        static const std::regex fp8_fusion(
            "float8\\w+\\)' of input parameter .* of operator \\(MatMulIntegerToFloat\\)");
        const std::string text = error.what();
        if (!std::regex_search(text, fp8_fusion)) throw;
        options.AddConfigEntry("session.disable_quant_qdq", "1");
        return Ort::Session(environment(), data.data(), data.size(), options);
    }
}

// A session on a plug-in provider; warns, once, of costly operators that it leaves to the CPU.
Ort::Session OnnxRuntimeBackend::on_plugin(const fs::path& path, const std::string& data,
                                           Ort::SessionOptions& options) {
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_VERBOSE);
    const LogCapture log;
    Ort::Session session(environment(), data.data(), data.size(), options);
    const std::string left = heavy_on_cpu(log.messages);
    if (!left.empty() && warning && warned.insert(path.string()).second)
        warning(path.filename().string() + ": " + plugin->name() + " leaves to the CPU: " + left);
    return session;
}

Outputs OnnxRuntimeBackend::run(const std::string& graph, const Inputs& inputs) {
    for (;;) {
        check_stopped();
        Loaded& each = loaded(graph);
        check_stopped();
        try {
            const std::vector<Ort::Value> values = results(each, inputs);
            has_run = true;
            Outputs outputs;
            for (std::size_t i = 0; i < each.outputs.size(); ++i) {
                const auto info = values[i].GetTensorTypeAndShapeInfo();
                if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
                    throw Error(graph + " is not a graph of this format: its output " + each.outputs[i] +
                                " is not float32");
                const float* data = values[i].GetTensorData<float>();
                outputs[each.outputs[i]] = {info.GetShape(), {data, data + info.GetElementCount()}};
            }
            return outputs;
        } catch (const Ort::Exception& error) {
            check_stopped();
            fall_back(explained(graph + " failed in ONNX Runtime", error));
        }
    }
}

void OnnxRuntimeBackend::release(const std::string& graph) {
    sessions.erase(graph);
    if (low_memory) ::malloc_trim(0);
}

// The outputs of one run, in host memory.
std::vector<Ort::Value> OnnxRuntimeBackend::results(Loaded& graph, const Inputs& inputs) {
    if (!graph.binding) {
        std::vector<const char*> names, outputs;
        std::vector<Ort::Value> values;
        for (const auto& [name, input] : inputs) {
            names.push_back(name.c_str());
            values.push_back(value_of(input));
        }
        for (const std::string& name : graph.outputs) outputs.push_back(name.c_str());
        return graph.session.Run(run_options, names.data(), values.data(), values.size(), outputs.data(),
                                 outputs.size());
    }
    // Binding an input copies it to the device. What is held is bound already, but for the first time.
    for (const auto& [name, input] : inputs) {
        std::uint64_t& bound = graph.held[name];
        if (input.held == 0 || bound != input.held) graph.binding->BindInput(name.c_str(), value_of(input));
        bound = input.held;
    }
    graph.binding->ClearBoundOutputs();
    for (const std::string& name : graph.outputs) graph.binding->BindOutput(name.c_str(), host_memory());
    graph.session.Run(run_options, *graph.binding);
    return graph.binding->GetOutputValues();
}

// One line: what failed, on which provider, and why.
std::string OnnxRuntimeBackend::explained(const std::string& what, const std::exception& error) const {
    const std::string provider = plugin ? plugin->name() : device == "cuda" ? cuda_provider : "CPUExecutionProvider";
    const bool exhausted = is_exhausted(error.what());
    return what + " on " + provider + ": " +
           (exhausted ? "out of memory: try a smaller --size or fewer --num-images" : reason_of(error));
}

// Goes on on the CPU, with a warning, if the device was not asked for and nothing has run on it. Throws Error if it was
// asked for, or has run something, or is the CPU, or if the CPU has no kernels for the bundle.
void OnnxRuntimeBackend::fall_back(const std::string& reason) {
    if (device == "cpu") throw Error(reason);
    if (!automatic || has_run) throw Error(reason + "; or " + instead(bundle));
    device = "cpu";
    sessions.clear();
    refuse_missing_kernels();
    if (warning) warning("no usable GPU, running on the CPU: " + reason);
}

void OnnxRuntimeBackend::interrupt() noexcept {
    try {
        run_options.SetTerminate();
    } catch (const Ort::Exception&) {  // nothing is running
    }
}

void OnnxRuntimeBackend::resume() { run_options.UnsetTerminate(); }

}  // namespace kontext
