// A plug-in execution provider: a library of its own that ONNX Runtime loads, with devices and options.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

#include "kontext/kontext.hpp"

struct OrtEpDevice;  // headers before 1.22 do not declare it

namespace kontext {

class Plugin {
public:
    // Loads "LIBRARY[:key=value,…]" and chooses among its devices; the key "device" (cpu, gpu or npu) chooses their
    // kind, else it is the first of gpu, npu, cpu that is there. All other keys are options of the provider. Throws
    // Error if the library cannot be loaded or has no such device here.
    explicit Plugin(const std::string& text);

    void append(Ort::SessionOptions& options) const;

    // ONNX Runtime's name of the provider, such as OpenVINOExecutionProvider.
    std::string name() const;

    // What of all its devices there is, for the user.
    static std::vector<DeviceInfo> list(const std::string& text);

private:
    std::vector<const OrtEpDevice*> devices;
    std::map<std::string, std::string> options;
};

}  // namespace kontext
