// The linked ONNX Runtime: its one environment, its version, its providers.
#pragma once

#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

namespace kontext {

// One for the process. It prints no log: ONNX Runtime's errors are thrown as exceptions. Throws Error if the library is
// older than the headers that this was built with.
Ort::Env& environment();

// Collects what ONNX Runtime logs in this thread while it exists, for sessions whose log level asks for it.
class LogCapture {
public:
    LogCapture();
    ~LogCapture();
    LogCapture(const LogCapture&) = delete;
    LogCapture& operator=(const LogCapture&) = delete;

    std::vector<std::string> messages;
};

// What a session's verbose log says that the CPU's provider computes of what is costly, "3 Attention, 2 Gelu"; "" if
// nothing. As heavy_on_cpu of runtime/backends/placement.py.
std::string heavy_on_cpu(const std::vector<std::string>& messages);

std::string onnxruntime_version();

// Names, such as CUDAExecutionProvider.
std::vector<std::string> providers();

bool has_provider(const std::string& name);

// "CUDAExecutionProvider, CPUExecutionProvider"
std::string joined(const std::vector<std::string>& words);

// The first line of ONNX Runtime's message, which says what happened; many follow.
std::string first_line(const std::exception& error);

// The number of cores that this process is limited to (taskset, a container's cpuset); 0 if it is not. Libraries would
// start a thread for each of the machine's cores, and threads that share a core are slow.
int allowed_cores();

}  // namespace kontext
