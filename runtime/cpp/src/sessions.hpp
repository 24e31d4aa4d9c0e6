// Runs a bundle's graphs in ONNX Runtime: one session a graph, made when first used, dropped when told.
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

// Values over memory of the caller's, which must outlive them.
Ort::Value view(const std::vector<float>& data, const std::vector<std::int64_t>& shape);
Ort::Value view(const float* data, const std::vector<std::int64_t>& shape);
Ort::Value view(const std::vector<std::int64_t>& ids);  // [1, ids]

class Sessions {
public:
    // `threads`: cores that one run may use; 0 for all that this process may use. `bundle` outlives this.
    Sessions(const Bundle& bundle, int threads);

    // Throws Error where ONNX Runtime refuses the graph or fails in it, Cancelled where stop() has come.
    Outputs run(const std::string& graph, const Inputs& inputs);

    // Drops a session, and with it its weights.
    void release(const std::string& graph) { sessions.erase(graph); }

    // From any thread: ends the run that is going on, and lets none begin until reset().
    void stop() noexcept;
    void reset();
    void check_stopped() const;

private:
    Ort::Session& session(const std::string& graph);

    const Bundle& bundle;
    int threads;
    std::map<std::string, MappedFile> weights;  // only of a bundle with links
    std::map<std::string, Ort::Session> sessions;
    Ort::RunOptions run_options;
    std::atomic<bool> stopped{false};
};

}  // namespace kontext
