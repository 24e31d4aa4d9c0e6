#include "plugin.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <regex>

#include "onnxruntime_library.hpp"

namespace kontext {

const std::map<std::string, Published> published = {
    {"nv-rtx", {"TensorRT for RTX", "libonnxruntime_providers_nv_tensorrt_rtx.so"}},
    {"webgpu", {"WebGPU", "libonnxruntime_providers_webgpu.so"}},
    {"migraphx", {"MIGraphX (AMD)", "libonnxruntime_providers_migraphx.so"}}};

std::string find_library(const std::string& device) {
    namespace fs = std::filesystem;
    std::vector<fs::path> folders;
    Dl_info info{};
    if (::dladdr(reinterpret_cast<const void*>(&OrtGetApiBase), &info) != 0 && info.dli_fname != nullptr)
        folders.push_back(fs::path(info.dli_fname).parent_path());
    const char* variable = std::getenv("LD_LIBRARY_PATH");
    const std::string searched = variable != nullptr ? variable : "";
    for (std::size_t at = 0; at < searched.size();) {
        const std::size_t end = std::min(searched.find(':', at), searched.size());
        folders.emplace_back(searched.substr(at, end - at));
        at = end + 1;
    }
    std::error_code code;
    for (const fs::path& folder : folders)
        if (const fs::path path = folder / published.at(device).library; fs::is_regular_file(path, code))
            return path.string();
    return "";
}

Plugin Plugin::of_device(const std::string& device) {
    const std::string path = find_library(device);
    const auto& [title, library] = published.at(device);
    if (path.empty())
        throw Error(
            "device '" + device + "' needs ONNX Runtime's plug-in for " + title + ", " + library +
            ", which is neither beside ONNX Runtime's library nor in LD_LIBRARY_PATH: say where with --provider");
    return Plugin(path);
}

#if ORT_API_VERSION >= 23
namespace {

const OrtApi& api() { return Ort::GetApi(); }

struct Parsed {
    std::string library;
    std::map<std::string, std::string> options;
};

Parsed parse_provider(const std::string& text) {
    static const std::regex form("(.+?)(?::([\\w.]+=[^,=]*(?:,[\\w.]+=[^,=]*)*))?"), pair("([\\w.]+)=([^,=]*)");
    std::smatch found;
    if (!std::regex_match(text, found, form) || found[1].str().find('=') != std::string::npos)
        throw Error("--provider takes LIBRARY[:key=value,…], not '" + text.substr(0, 80) + "'");
    Parsed result{found[1], {}};
    const std::string pairs = found[2];
    for (std::sregex_iterator each(pairs.begin(), pairs.end(), pair), end; each != end; ++each)
        result.options[(*each)[1]] = (*each)[2];
    return result;
}

std::vector<const OrtEpDevice*> all_devices() {
    const OrtEpDevice* const* found = nullptr;
    std::size_t count = 0;
    Ort::ThrowOnError(api().GetEpDevices(environment(), &found, &count));
    return {found, found + count};
}

// The devices of a library, which is loaded at its first use and stays loaded.
std::vector<const OrtEpDevice*> devices_of(const std::string& library) {
    static std::mutex one_at_a_time;
    static std::map<std::string, std::vector<const OrtEpDevice*>> loaded;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (!std::filesystem::is_regular_file(library)) throw Error("provider " + library + ": there is no such library");
    const std::string path = std::filesystem::canonical(library).string();
    const auto found = loaded.find(path);
    if (found != loaded.end()) return found->second;
    const std::vector<const OrtEpDevice*> before = all_devices();
    std::vector<const OrtEpDevice*> result;
    const std::string name = std::filesystem::path(library).stem().string();
    try {
        Ort::ThrowOnError(api().RegisterExecutionProviderLibrary(environment(), name.c_str(), path.c_str()));
    } catch (const Ort::Exception& error) {
        throw Error("provider " + library + ": ONNX Runtime " + onnxruntime_version() +
                    " cannot load it: " + first_line(error));
    }
    for (const OrtEpDevice* each : all_devices())
        if (std::find(before.begin(), before.end(), each) == before.end()) result.push_back(each);
    return loaded[path] = result;
}

// "ggml: CPU, AMD (key value, …)": provider, kind, vendor, and what the provider says of it.
std::string described(const OrtEpDevice* device) {
    const OrtHardwareDevice* hardware = api().EpDevice_Device(device);
    const OrtHardwareDeviceType kind = api().HardwareDevice_Type(hardware);
    const std::string vendor = api().HardwareDevice_Vendor(hardware);
    std::vector<std::string> about;
    for (const OrtKeyValuePairs* pairs : {api().HardwareDevice_Metadata(hardware), api().EpDevice_EpMetadata(device)}) {
        const char *const *keys = nullptr, *const *values = nullptr;
        std::size_t count = 0;
        api().GetKeyValuePairs(pairs, &keys, &values, &count);
        for (std::size_t i = 0; i < count; ++i) about.push_back(std::string(keys[i]) + " " + values[i]);
    }
    return std::string(api().EpDevice_EpName(device)) + ": " +
           (kind == OrtHardwareDeviceType_GPU   ? "GPU"
            : kind == OrtHardwareDeviceType_NPU ? "NPU"
                                                : "CPU") +
           ", " + (vendor.empty() ? api().EpDevice_EpVendor(device) : vendor) +
           (about.empty() ? "" : " (" + joined(about) + ")");
}

}  // namespace

Plugin::Plugin(const std::string& text) {
    Parsed parsed = parse_provider(text);
    const std::vector<const OrtEpDevice*> all = devices_of(parsed.library);
    if (all.empty())
        throw Error("provider " + parsed.library +
                    ": it finds no device here that it runs on; check its driver, or use --device cpu");
    device = all[0];
    options = std::move(parsed.options);
}

void Plugin::append(Ort::SessionOptions& into) const {
    std::vector<const char*> keys, values;
    for (const auto& [key, value] : options) {
        keys.push_back(key.c_str());
        values.push_back(value.c_str());
    }
    Ort::ThrowOnError(api().SessionOptionsAppendExecutionProvider_V2(into, environment(), &device, 1, keys.data(),
                                                                     values.data(), keys.size()));
}

std::string Plugin::name() const { return api().EpDevice_EpName(device); }

std::vector<DeviceInfo> Plugin::list(const std::string& text) {
    const Parsed parsed = parse_provider(text);
    std::vector<DeviceInfo> result;
    for (const OrtEpDevice* each : devices_of(parsed.library)) result.push_back({"", text, described(each)});
    return result;
}

#else

namespace {

Error too_old() {
    return Error("plug-in providers need a build with the headers of ONNX Runtime 1.23 or newer; this has those of 1." +
                 std::to_string(ORT_API_VERSION));
}

}  // namespace

Plugin::Plugin(const std::string&) { throw too_old(); }
void Plugin::append(Ort::SessionOptions&) const {}
std::string Plugin::name() const { return ""; }
std::vector<DeviceInfo> Plugin::list(const std::string&) { throw too_old(); }

#endif

}  // namespace kontext
