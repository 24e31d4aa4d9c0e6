#include "onnxruntime_library.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <new>
#include <set>

#include "kontext/kontext.hpp"

namespace kontext {
namespace {

thread_local LogCapture* capturing = nullptr;

void ORT_API_CALL keep(void*, OrtLoggingLevel, const char*, const char*, const char*, const char* message) noexcept {
    try {
        if (capturing != nullptr) capturing->messages.emplace_back(message);
    } catch (const std::bad_alloc&) {  // a message less
    }
}

// HEAVY of runtime/backends/placement.py: operators that compute on whole activations or weights.
const std::set<std::string> heavy = {"Attention",
                                     "Conv",
                                     "DequantizeLinear",
                                     "DynamicQuantizeLinear",
                                     "Gelu",
                                     "Gemm",
                                     "GroupNormalization",
                                     "InstanceNormalization",
                                     "LayerNormalization",
                                     "MatMul",
                                     "MatMulInteger",
                                     "MatMulNBits",
                                     "QuantizeLinear",
                                     "Resize",
                                     "RMSNormalization",
                                     "RotaryEmbedding",
                                     "Softmax"};

}  // namespace

LogCapture::LogCapture() { capturing = this; }
LogCapture::~LogCapture() { capturing = nullptr; }

std::string heavy_on_cpu(const std::vector<std::string>& messages) {
    // " Node(s) placed on [NAME]. Number of nodes: N" and then "  OPERATOR (NODE)" for each; of a session on one
    // provider only " All nodes placed on [NAME]. Number of nodes: N".
    const std::string all = " All nodes placed on [CPUExecutionProvider]. Number of nodes: ";
    std::map<std::string, int> counts;
    bool on_cpu = false;
    for (const std::string& message : messages) {
        if (message.compare(0, all.size(), all) == 0) return "all " + message.substr(all.size()) + " operators";
        if (message.find("placed on [") != std::string::npos)
            on_cpu = message.find("[CPUExecutionProvider]") != std::string::npos;
        else if (on_cpu && message.compare(0, 2, "  ") == 0) {
            const std::string name = message.substr(2, message.find(' ', 2) - 2);
            if (heavy.count(name) != 0) ++counts[name];
        }
    }
    std::vector<std::string> words;
    for (const auto& [name, count] : counts) words.push_back(std::to_string(count) + " " + name);
    return joined(words);
}

Ort::Env& environment() {
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
        throw Error("ONNX Runtime " + onnxruntime_version() + " is older than 1." + std::to_string(ORT_API_VERSION) +
                    ", which this was built for");
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // else 1.32 writes an identifier under the user's home
    // Never destroyed: at the end of a process plug-in providers may have lost what they need to be unloaded.
    static Ort::Env& env = *new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "kontext", keep, nullptr);
    return env;
}

std::string onnxruntime_version() { return OrtGetApiBase()->GetVersionString(); }

std::vector<std::string> providers() {
    environment();
    return Ort::GetAvailableProviders();
}

bool has_provider(const std::string& name) {
    const std::vector<std::string> all = providers();
    return std::find(all.begin(), all.end(), name) != all.end();
}

std::string joined(const std::vector<std::string>& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
    return text;
}

std::string first_line(const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
}

int allowed_cores() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
    const int allowed = CPU_COUNT(&set);
    return allowed < static_cast<int>(sysconf(_SC_NPROCESSORS_CONF)) ? allowed : 0;
}

}  // namespace kontext
