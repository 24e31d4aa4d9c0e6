// A plug-in execution provider: a library of its own that ONNX Runtime loads, with devices and options; as
// runtime/backends/plugins.py.
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
    // Loads "LIBRARY[:key=value,…]", whose keys are options of the provider, and takes its first device. Throws Error
    // if the library cannot be loaded or finds no device here.
    explicit Plugin(const std::string& text);

    // That of a device of `published`, whose library is searched beside ONNX Runtime's and in LD_LIBRARY_PATH.
    static Plugin of_device(const std::string& device);

    void append(Ort::SessionOptions& options) const;

    // ONNX Runtime's name of the provider, such as OpenVINOExecutionProvider.
    std::string name() const;

    // What devices the provider finds here, for the user.
    static std::vector<DeviceInfo> list(const std::string& text);

private:
    const OrtEpDevice* device = nullptr;
    std::map<std::string, std::string> options;
};

// Published plug-in providers: device → what it is, and its library.
struct Published {
    std::string title, library;
};
extern const std::map<std::string, Published> published;

// Where the library of a device of `published` is; "" if it is nowhere.
std::string find_library(const std::string& device);

}  // namespace kontext
