#include "onnxruntime_library.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>

#include "kontext/kontext.hpp"

namespace kontext {

Ort::Env& environment() {
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
        throw Error("ONNX Runtime " + onnxruntime_version() + " is older than 1." + std::to_string(ORT_API_VERSION) +
                    ", which this was built for");
    // Never destroyed: at the end of a process plug-in providers may have lost what they need to be unloaded.
    static Ort::Env& env = *new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "kontext");
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
