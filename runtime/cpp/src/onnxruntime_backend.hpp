// Runs a bundle's graphs in ONNX Runtime: one session for each graph, created at its first use. On a GPU, runs use I/O
// binding, and inputs that several runs share are copied once.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

#include "backend.hpp"
#include "bundle.hpp"
#include "mapped_file.hpp"
#include "plugin.hpp"

namespace kontext {

class OnnxRuntimeBackend : public Backend {
public:
    // `bundle` must outlive this. `device`: cpu, cuda, or another name with a plug-in. `threads`: CPU cores that one
    // run may use; 0: all that this process may use. `low_memory`: keep no host memory between the operators of a run:
    // ONNX Runtime's arena keeps several times what is in use at once. `automatic`: go on on the CPU if the device
    // cannot be started. Throws Error if this ONNX Runtime does not have the device, or has no kernels for the bundle
    // there.
    OnnxRuntimeBackend(const Bundle& bundle, const std::string& device, int threads, bool low_memory = false,
                       bool automatic = false, std::optional<Plugin> plugin = std::nullopt);

    Outputs run(const std::string& graph, const Inputs& inputs) override;
    void release(const std::string& graph) override;

    // Loads a graph if it is not loaded.
    void load(const std::string& graph) { loaded(graph); }

protected:
    // Called with the options of every session before it is created.
    virtual void adjust(Ort::SessionOptions&) {}

private:
    struct Loaded {
        Ort::Session session;
        std::vector<std::string> outputs;
        std::optional<Ort::IoBinding> binding;      // not on a CPU
        std::map<std::string, std::uint64_t> held;  // input → number of what is bound to it
    };

    Loaded& loaded(const std::string& graph);
    Ort::Session created(const std::string& graph);
    Ort::Session on_plugin(const fs::path& path, const std::string& data, Ort::SessionOptions& options);
    std::vector<Ort::Value> results(Loaded& graph, const Inputs& inputs);
    std::string explained(const std::string& what, const std::exception& error) const;
    void fall_back(const std::string& reason);
    void refuse_missing_kernels() const;
    void interrupt() noexcept override;
    void resume() override;

    const Bundle& bundle;
    std::string device;
    bool automatic, has_run = false;
    int threads;
    bool low_memory;
    std::optional<Plugin> plugin;
    std::set<std::string> warned;               // graphs' paths
    std::map<std::string, MappedFile> weights;  // only for a bundle with links
    std::map<std::string, Loaded> sessions;
    Ort::RunOptions run_options;
};

}  // namespace kontext
