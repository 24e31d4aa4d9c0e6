#include "sessions.hpp"

#include <sched.h>

#include <algorithm>
#include <thread>

namespace kontext {
namespace {

const Ort::MemoryInfo& host_memory() {
    static const Ort::MemoryInfo info = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    return info;
}

// One for the process. It logs nothing: ONNX Runtime's errors are thrown as exceptions.
Ort::Env& environment() {
    static Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "kontext");
    return env;
}

void check_library() {
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
        throw Error(std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() + " is older than 1." +
                    std::to_string(ORT_API_VERSION) + ", which this was built for");
}

// The number of cores that this process is limited to (taskset, a container's cpuset); 0 if it is not. ONNX Runtime
// would start a thread for each of the machine's cores, and threads that share a core are slow.
int allowed_cores() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
    const int allowed = CPU_COUNT(&set);
    return allowed < static_cast<int>(sysconf(_SC_NPROCESSORS_CONF)) ? allowed : 0;
}

// The first line of ONNX Runtime's message, which says what happened; many follow.
std::string first_line(const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
}

}  // namespace

Ort::Value view(const float* data, const std::vector<std::int64_t>& shape) {
    std::size_t count = 1;
    for (std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
    return Ort::Value::CreateTensor<float>(host_memory(), const_cast<float*>(data), count, shape.data(), shape.size());
}

Ort::Value view(const std::vector<float>& data, const std::vector<std::int64_t>& shape) {
    static const float nothing = 0;  // an empty vector may have no address
    return view(data.empty() ? &nothing : data.data(), shape);
}

Ort::Value view(const std::vector<std::int64_t>& ids) {
    const std::int64_t shape[] = {1, static_cast<std::int64_t>(ids.size())};
    return Ort::Value::CreateTensor<std::int64_t>(host_memory(), const_cast<std::int64_t*>(ids.data()), ids.size(),
                                                  shape, 2);
}

Sessions::Sessions(const Bundle& bundle, int threads)
    : bundle(bundle), threads(threads > 0 ? threads : allowed_cores()), run_options((check_library(), nullptr)) {
    for (const auto& [name, path] : bundle.linked_files()) weights.emplace(name, MappedFile(path));
    run_options = Ort::RunOptions();
}

Ort::Session& Sessions::session(const std::string& graph) {
    const auto found = sessions.find(graph);
    if (found != sessions.end()) return found->second;
    const fs::path& path = bundle.graphs.at(graph).path;
    try {
        Ort::SessionOptions options;
        options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
        if (threads > 0) options.SetIntraOpNumThreads(threads);
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
        return sessions.emplace(graph, Ort::Session(environment(), path.c_str(), options)).first->second;
    } catch (const Ort::Exception& error) {
        throw Error(path.string() + " cannot be loaded: " + first_line(error));
    }
}

Outputs Sessions::run(const std::string& graph, const Inputs& inputs) {
    check_stopped();
    Ort::Session& session = this->session(graph);
    check_stopped();
    try {
        Ort::AllocatorWithDefaultOptions allocator;
        std::vector<std::string> names;
        std::vector<const char*> output_names;
        for (std::size_t i = 0; i < session.GetOutputCount(); ++i)
            names.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
        for (const std::string& name : names) output_names.push_back(name.c_str());
        const std::vector<Ort::Value> results = session.Run(run_options, inputs.names.data(), inputs.values.data(),
                                                            inputs.values.size(), output_names.data(), names.size());
        Outputs outputs;
        for (std::size_t i = 0; i < names.size(); ++i) {
            const auto info = results[i].GetTensorTypeAndShapeInfo();
            if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
                throw Error(graph + " is not a graph of this format: its output " + names[i] + " is not float32");
            const float* data = results[i].GetTensorData<float>();
            outputs[names[i]] = {info.GetShape(), {data, data + info.GetElementCount()}};
        }
        return outputs;
    } catch (const Ort::Exception& error) {
        check_stopped();
        throw Error(graph + " failed in ONNX Runtime: " + first_line(error));
    }
}

void Sessions::stop() noexcept {
    stopped = true;
    try {
        run_options.SetTerminate();
    } catch (const Ort::Exception&) {  // nothing is running
    }
}

void Sessions::reset() {
    stopped = false;
    run_options.UnsetTerminate();
}

void Sessions::check_stopped() const {
    if (stopped) throw Cancelled("the edit was cancelled");
}

}  // namespace kontext
