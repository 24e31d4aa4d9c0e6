// The interface between the pipeline and what runs a bundle's graphs: ONNX Runtime or OpenVINO.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kontext/kontext.hpp"

namespace kontext {

// A float32 array.
struct Tensor {
    std::vector<std::int64_t> shape;
    std::vector<float> data;
};

// An input of a graph: an array in the caller's memory, which must stay as it is until the run, or, if it is held,
// until the last run with it.
struct Input {
    enum class Type { float32, int64 };

    Type type;
    const void* data;
    std::vector<std::int64_t> shape;
    std::uint64_t held = 0;  // by Backend::hold: inputs with the same number have the same values

    std::size_t count() const {
        std::size_t product = 1;
        for (std::int64_t extent : shape) product *= static_cast<std::size_t>(extent);
        return product;
    }
};

using Inputs = std::map<std::string, Input>;
using Outputs = std::map<std::string, Tensor>;

inline Input view(const std::vector<float>& data, std::vector<std::int64_t> shape) {
    static const float nothing = 0;  // an empty vector may have no address
    return {Input::Type::float32, data.empty() ? &nothing : data.data(), std::move(shape)};
}

inline Input view(const std::vector<std::int64_t>& ids, std::vector<std::int64_t> shape) {
    return {Input::Type::int64, ids.data(), std::move(shape)};
}

// Only the pipeline calls it, from one thread at a time; stop() alone may be called from any thread.
class Backend {
public:
    Backend() = default;
    virtual ~Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;

    // Marks inputs that several runs share: they are copied to the device once.
    void hold(Inputs& inputs) {
        for (auto& [name, input] : inputs) input.held = ++last_held;
    }

    // Runs a graph, and loads it first if it is not loaded. Throws Error if it cannot be loaded or run, Cancelled after
    // stop().
    virtual Outputs run(const std::string& graph, const Inputs& inputs) = 0;

    // Frees what was loaded for a graph.
    virtual void release(const std::string& graph) = 0;

    // From any thread: stops the current run, and every later one until reset().
    void stop() noexcept {
        stopped = true;
        interrupt();
    }

    void reset() {
        stopped = false;
        resume();
    }

    void check_stopped() const {
        if (stopped) throw Cancelled("the edit was cancelled");
    }

    // Called with a line for the user, such as that the CPU runs what a GPU was to run.
    std::function<void(const std::string&)> warning;

protected:
    virtual void interrupt() noexcept = 0;
    virtual void resume() {}

private:
    std::atomic<bool> stopped{false};
    std::uint64_t last_held = 0;
};

}  // namespace kontext
