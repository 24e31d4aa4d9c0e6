// Runs a bundle's graphs in ONNX Runtime: one session for each graph, created at its first use.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

#include "bundle.hpp"
#include "mapped_file.hpp"

namespace kontext {

// A float32 array.
struct Tensor {
    std::vector<std::int64_t> shape;
    std::vector<float> data;
};

struct Inputs {
    std::vector<const char*> names;
    std::vector<Ort::Value> values;

    void add(const char* name, Ort::Value value) {
        names.push_back(name);
        values.push_back(std::move(value));
    }
};

using Outputs = std::map<std::string, Tensor>;

// Values over the caller's memory, which must outlive them.
Ort::Value view(const std::vector<float>& data, const std::vector<std::int64_t>& shape);
Ort::Value view(const float* data, const std::vector<std::int64_t>& shape);
Ort::Value view(const std::vector<std::int64_t>& ids);  // [1, ids]

class Sessions {
public:
    // `threads`: cores that one run may use; 0: all that this process may use. `bundle` must outlive this.
    Sessions(const Bundle& bundle, int threads);

    // Throws Error if ONNX Runtime cannot load or run the graph, Cancelled after stop().
    Outputs run(const std::string& graph, const Inputs& inputs);

    // Drops a session with its weights.
    void release(const std::string& graph) { sessions.erase(graph); }

    // From any thread: stops the current run, and every later one until reset().
    void stop() noexcept;
    void reset();
    void check_stopped() const;

private:
    Ort::Session& session(const std::string& graph);

    const Bundle& bundle;
    int threads;
    std::map<std::string, MappedFile> weights;  // only for a bundle with links
    std::map<std::string, Ort::Session> sessions;
    Ort::RunOptions run_options;
    std::atomic<bool> stopped{false};
};

}  // namespace kontext
