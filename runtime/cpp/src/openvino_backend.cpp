#include "openvino_backend.hpp"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "graph_file.hpp"
#include "onnxruntime_library.hpp"
#include "openvino_rewrite.hpp"
#include "regular_file.hpp"

namespace kontext {
namespace {

// Weights up to which a graph's compiled form is kept on disk: it holds a copy of them. The transformer's never is:
// OpenVINO 2026.4 computes NaN and other values from memory that it did not set with one from its cache.
constexpr std::uintmax_t cached_bytes = 256 << 20;

// A bundle's weights from which on graphs are compiled for the shapes of their inputs, as in
// runtime/backends/openvino/backend.py, which says why.
constexpr std::uint64_t fixed_shapes_bytes = std::uint64_t{2} << 30;

const std::map<std::string, std::vector<std::string>> outputs_of = {
    {"text_encoder", {"pooled"}},
    {"text_encoder_2", {"text"}},
    {"vae_encoder", {"latents"}},
    {"vae_decoder", {"image"}},
    {"modulation", {"double_modulation", "single_modulation", "final_modulation"}},
    {"transformer", {"velocity"}}};

struct Compute {
    std::string name, capability, hint;  // ours, OpenVINO's among OPTIMIZATION_CAPABILITIES, and as a hint
};
const std::vector<Compute> known = {{"fp32", "FP32", "f32"}, {"bf16", "BF16", "bf16"}, {"fp16", "FP16", "f16"}};

const Compute& compute_of(const std::string& name) {
    const auto found = std::find_if(known.begin(), known.end(), [&](const Compute& each) { return each.name == name; });
    if (found == known.end())
        throw Error("compute '" + name.substr(0, 40) + "' is not known: choose from fp32, fp16, bf16");
    return *found;
}

// The last line of OpenVINO's message, which says what happened; the lines before it name source files.
std::string cause(const std::exception& error) {
    std::istringstream lines(error.what());
    std::string last = "no reason", line;
    while (std::getline(lines, line)) {
        const std::size_t start = line.find_first_not_of(" \t\r"), end = line.find_last_not_of(" \t\r");
        if (start != std::string::npos) last = line.substr(start, end - start + 1);
    }
    return last;
}

// OpenVINO's name of a device such as "openvino:gpu"; without a part behind the colon it is the CPU.
std::string choose_device(const std::string& device, const std::vector<std::string>& available) {
    const std::size_t colon = device.find(':');
    std::string name = colon == std::string::npos ? "cpu" : device.substr(colon + 1);
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::toupper(c); });
    const bool there = std::any_of(available.begin(), available.end(),
                                   [&](const std::string& each) { return each.substr(0, each.find('.')) == name; });
    if (!there)
        throw Error("device '" + device + "': OpenVINO finds no " + name + " here (it has " + joined(available) +
                    "): install the " + name + "'s driver, or use --device openvino:cpu");
    return name;
}

// What a graph computes in on a device, as choose_compute of runtime/backends/openvino/device.py.
std::string choose_compute(const std::string& graph, const std::string& asked, const std::string& exported,
                           const std::string& device, const std::vector<std::string>& capabilities) {
    const auto has = [&](const std::string& compute) {
        const std::string& name = compute_of(compute).capability;
        return std::find(capabilities.begin(), capabilities.end(), name) != capabilities.end();
    };
    if (!asked.empty() && asked != "fp32" && !has(asked)) {
        std::vector<std::string> names;
        for (const Compute& each : known)
            if (has(each.name)) names.push_back(each.name);
        throw Error("this " + device + " does not compute in " + asked + " in OpenVINO: choose from " + joined(names));
    }
    const std::string wanted = asked.empty() ? exported : asked;
    // No CPU had units for fp16 when this was tested.
    if (asked.empty() && (!has(wanted) || (wanted == "fp16" && device == "CPU"))) return "fp32";
    // The sine of 1000 times the timestep needs fp32; T5 leaves the range of fp16. Both run once an edit.
    const bool wide = (wanted != "fp32" && graph == "modulation") || (wanted == "fp16" && graph == "text_encoder_2");
    return wide ? "fp32" : wanted;
}

// The folder for compiled graphs; "" where none can be written.
std::string cache_folder() {
    const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
    const bool set = cache != nullptr && *cache == '/';  // the specification ignores relative ones
    if (!set && home == nullptr) return "";
    const fs::path folder = (set ? fs::path(cache) : fs::path(home) / ".cache") / "kontext-export" / "openvino";
    std::error_code code;
    fs::create_directories(folder, code);
    return access(folder.c_str(), W_OK | X_OK) == 0 ? folder.string() : "";
}

ov::Tensor tensor_of(const std::string& graph, const std::string& name, const Input& input,
                     const ov::element::Type& expected) {
    const ov::element::Type type = input.type == Input::Type::int64 ? ov::element::i64 : ov::element::f32;
    if (type != expected)
        throw Error(graph + " is not a graph of this format: its input " + name + " is " + expected.get_type_name());
    return {type, ov::Shape(input.shape.begin(), input.shape.end()), const_cast<void*>(input.data)};
}

}  // namespace

OpenVINOBackend::OpenVINOBackend(const Bundle& bundle, const std::string& device, const LoadOptions& options,
                                 bool low_memory)
    : bundle(bundle), options(options), low_memory(low_memory) {
    if (!options.compute.empty()) compute_of(options.compute);
    if (!bundle.links.empty())  // OpenVINO reads weights beside the graph only
        throw Error(bundle.folder.string() +
                    " was exported with --link-weights, which OpenVINO does not read: use "
                    "--device cpu, or export it again without --link-weights");
    try {
        this->device = choose_device(device, core.get_available_devices());
        const auto capabilities = core.get_property(this->device, ov::device::capabilities);
        for (const auto& [graph, entry] : bundle.graphs) {
            const auto exported = bundle.computes.find(graph);
            computes[graph] =
                choose_compute(graph, options.compute, exported == bundle.computes.end() ? "fp32" : exported->second,
                               this->device, capabilities);
        }
    } catch (const ov::Exception& error) {
        throw Error("OpenVINO cannot be started: " + cause(error));
    }
}

ov::AnyMap OpenVINOBackend::properties(const std::string& graph) const {
    ov::AnyMap result = {{"PERFORMANCE_HINT", "LATENCY"},
                         {"INFERENCE_PRECISION_HINT", compute_of(computes.at(graph)).hint}};
    if (device == "CPU") {
        result["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0;  // else it rounds activations to 8 bits
        const int threads = options.threads > 0 ? options.threads : allowed_cores();
        if (threads > 0) result["INFERENCE_NUM_THREADS"] = threads;
    }
    const std::string folder = cache_folder();
    std::error_code code;
    const bool small = fs::file_size(bundle.graphs.at(graph).weights, code) <= cached_bytes && !code;
    if (!folder.empty() && small && !has_fixed_shapes() && graph != "transformer") result["CACHE_DIR"] = folder;
    return result;
}

bool OpenVINOBackend::has_fixed_shapes() const { return bundle.weight_bytes() >= fixed_shapes_bytes; }

ov::InferRequest& OpenVINOBackend::request(const std::string& graph, const Inputs& inputs) {
    Shapes shapes;
    if (has_fixed_shapes())
        for (const auto& [name, input] : inputs) shapes[name].assign(input.shape.begin(), input.shape.end());
    const auto found = compiled.find(graph);
    if (found != compiled.end() && found->second.shapes == shapes) return found->second.request;
    compiled.erase(graph);  // before there are two
    return compiled.emplace(graph, Compiled{compile(graph, shapes), shapes}).first->second.request;
}

ov::InferRequest OpenVINOBackend::compile(const std::string& graph, const Shapes& shapes) {
    const fs::path& path = bundle.graphs.at(graph).path;
    bundle.graph_bytes(graph);  // compares its SHA-256; OpenVINO finds weights beside a file only, and so reads it itself
    try {
        const std::shared_ptr<ov::Model> model = core.read_model(path.string());  // maps the weights
        rewrite(model);
        std::map<std::string, ov::PartialShape> fixed;
        for (const ov::Output<ov::Node>& port : model->inputs())
            for (const std::string& name : port.get_names())
                if (const auto found = shapes.find(name); found != shapes.end())
                    fixed[name] = ov::Shape(found->second.begin(), found->second.end());
        if (!fixed.empty()) model->reshape(fixed);
        return core.compile_model(model, device, properties(graph)).create_infer_request();
    } catch (const ov::Exception& error) {
        throw Error(path.string() + " cannot be compiled for OpenVINO's " + device + ": " + cause(error));
    }
}

Outputs OpenVINOBackend::run(const std::string& graph, const Inputs& inputs) {
    check_stopped();
    ov::InferRequest& request = this->request(graph, inputs);
    try {
        for (const ov::Output<const ov::Node>& port : request.get_compiled_model().inputs())
            for (const std::string& name : port.get_names())
                if (const auto found = inputs.find(name); found != inputs.end())
                    request.set_tensor(port, tensor_of(graph, name, found->second, port.get_element_type()));
        {
            const std::lock_guard<std::mutex> lock(running);
            check_stopped();
            current = &request;
            request.start_async();
        }
        request.wait();
        {
            const std::lock_guard<std::mutex> lock(running);
            current = nullptr;
        }
        Outputs outputs;
        for (const std::string& name : outputs_of.at(graph)) {
            const ov::Tensor tensor = request.get_tensor(name);
            if (tensor.get_element_type() != ov::element::f32)
                throw Error(graph + " is not a graph of this format: its output " + name + " is not float32");
            const ov::Shape shape = tensor.get_shape();
            const auto* data = tensor.data<const float>();
            outputs[name] = {{shape.begin(), shape.end()}, {data, data + tensor.get_size()}};
        }
        return outputs;
    } catch (const ov::Exception& error) {
        {
            const std::lock_guard<std::mutex> lock(running);
            current = nullptr;
        }
        check_stopped();
        throw Error(graph + " failed in OpenVINO: " + cause(error));
    }
}

void OpenVINOBackend::release(const std::string& graph) {
    compiled.erase(graph);
    if (low_memory) ::malloc_trim(0);
}

void OpenVINOBackend::interrupt() noexcept {
    try {
        const std::lock_guard<std::mutex> lock(running);
        if (current != nullptr) current->cancel();
    } catch (const std::exception&) {  // it has ended
    }
}

std::vector<DeviceInfo> openvino_devices() {
    ov::Core core;
    std::vector<DeviceInfo> result;
    const std::string build = ov::get_openvino_version().buildNumber, version = build.substr(0, build.find('-'));
    try {
        for (const std::string& each : core.get_available_devices()) {
            std::string name = each.substr(0, each.find('.'));
            std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
            result.push_back({"openvino:" + name, "",
                              "OpenVINO " + version + ", " + core.get_property(each, ov::device::full_name)});
        }
    } catch (const ov::Exception& error) {
        throw Error("OpenVINO cannot be started: " + cause(error));
    }
    return result;
}

}  // namespace kontext
