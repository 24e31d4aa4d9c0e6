#include "plugin.hpp"

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <optional>

#include "onnxruntime_library.hpp"

namespace kontext {

#if ORT_API_VERSION >= 23
namespace {

const OrtApi& api() { return Ort::GetApi(); }

struct Parsed {
    std::string library;
    std::optional<OrtHardwareDeviceType> kind;
    std::map<std::string, std::string> options;
};

constexpr std::pair<const char*, OrtHardwareDeviceType> kinds[] = {
    {"gpu", OrtHardwareDeviceType_GPU}, {"npu", OrtHardwareDeviceType_NPU}, {"cpu", OrtHardwareDeviceType_CPU}};

const char* name_of(OrtHardwareDeviceType kind) {
    for (const auto& [name, each] : kinds)
        if (each == kind) return name;
    return "unknown";
}

Parsed parse_provider(const std::string& text) {
    constexpr const char* form = "--provider takes LIBRARY[:key=value,…]";
    Parsed result;
    const std::size_t colon = text.find(':');
    result.library = text.substr(0, colon);
    if (result.library.empty()) throw Error(std::string(form) + ", not '" + text.substr(0, 40) + "'");
    for (std::size_t at = colon; at != std::string::npos && at < text.size();) {
        const std::size_t end = std::min(text.find(',', at + 1), text.size());
        const std::string word = text.substr(at + 1, end - at - 1);
        const std::size_t equals = word.find('=');
        if (equals == std::string::npos || equals == 0)
            throw Error(std::string(form) + ": '" + word.substr(0, 40) + "' is not key=value");
        result.options[word.substr(0, equals)] = word.substr(equals + 1);
        at = end;
    }
    if (const auto device = result.options.find("device"); device != result.options.end()) {
        for (const auto& [name, kind] : kinds)
            if (device->second == name) result.kind = kind;
        if (!result.kind)
            throw Error("--provider: device must be gpu, npu or cpu, not '" + device->second.substr(0, 40) + "'");
        result.options.erase(device);
    }
    return result;
}

std::vector<const OrtEpDevice*> all_devices() {
    const OrtEpDevice* const* found = nullptr;
    std::size_t count = 0;
    Ort::ThrowOnError(api().GetEpDevices(environment(), &found, &count));
    return {found, found + count};
}

OrtHardwareDeviceType kind_of(const OrtEpDevice* device) {
    return api().HardwareDevice_Type(api().EpDevice_Device(device));
}

// The devices of a library, which is loaded at its first use and stays loaded.
std::vector<const OrtEpDevice*> devices_of(const std::string& library) {
    static std::mutex one_at_a_time;
    static std::map<std::string, std::vector<const OrtEpDevice*>> loaded;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (!std::filesystem::is_regular_file(library)) throw Error("--provider: " + library + " is not a file");
    const std::string path = std::filesystem::canonical(library).string();
    const auto found = loaded.find(path);
    if (found != loaded.end()) return found->second;
    const std::vector<const OrtEpDevice*> before = all_devices();
    std::vector<const OrtEpDevice*> result;
    const std::string name = std::filesystem::path(library).stem().string();
    try {
        Ort::ThrowOnError(api().RegisterExecutionProviderLibrary(environment(), name.c_str(), path.c_str()));
    } catch (const Ort::Exception& error) {
        throw Error(library + " cannot be loaded as a provider of ONNX Runtime " + onnxruntime_version() + ": " +
                    first_line(error));
    }
    for (const OrtEpDevice* each : all_devices())
        if (std::find(before.begin(), before.end(), each) == before.end()) result.push_back(each);
    return loaded[path] = result;
}

std::string described(const OrtEpDevice* device) {
    const OrtHardwareDevice* hardware = api().EpDevice_Device(device);
    std::string text = std::string(api().EpDevice_EpName(device)) + " on " + api().HardwareDevice_Vendor(hardware) +
                       " " + name_of(kind_of(device));
    const OrtKeyValuePairs* metadata = api().HardwareDevice_Metadata(hardware);
    for (const char* key : {"Description", "description"})
        if (const char* value = api().GetKeyValue(metadata, key)) text += std::string(" (") + value + ")";
    return text;
}

}  // namespace

Plugin::Plugin(const std::string& text) {
    Parsed parsed = parse_provider(text);
    const std::vector<const OrtEpDevice*> all = devices_of(parsed.library);
    for (const auto& [name, kind] : kinds) {
        if ((parsed.kind && kind != *parsed.kind) || !devices.empty()) continue;
        // A session takes devices of one provider only.
        for (const OrtEpDevice* each : all)
            if (kind_of(each) == kind &&
                (devices.empty() || std::string(api().EpDevice_EpName(each)) == api().EpDevice_EpName(devices[0])))
                devices.push_back(each);
    }
    if (devices.empty()) {
        std::vector<std::string> there;
        for (const OrtEpDevice* each : all) there.emplace_back(name_of(kind_of(each)));
        throw Error(parsed.library + " finds no " + (parsed.kind ? name_of(*parsed.kind) : "device") + " here" +
                    (there.empty() ? "" : " (it has " + joined(there) + ")") +
                    ": install the device's driver, or use --device cpu");
    }
    options = std::move(parsed.options);
}

void Plugin::append(Ort::SessionOptions& into) const {
    std::vector<const char*> keys, values;
    for (const auto& [key, value] : options) {
        keys.push_back(key.c_str());
        values.push_back(value.c_str());
    }
    Ort::ThrowOnError(api().SessionOptionsAppendExecutionProvider_V2(
        into, environment(), devices.data(), devices.size(), keys.data(), values.data(), keys.size()));
}

std::string Plugin::name() const { return api().EpDevice_EpName(devices[0]); }

std::vector<DeviceInfo> Plugin::list(const std::string& text) {
    const Parsed parsed = parse_provider(text);
    std::vector<DeviceInfo> result;
    for (const OrtEpDevice* each : devices_of(parsed.library))
        result.push_back({"", parsed.library + ":device=" + name_of(kind_of(each)), described(each)});
    return result;
}

#else

namespace {

Error too_old() {
    return Error("--provider needs a build with the headers of ONNX Runtime 1.23 or newer; this has those of 1." +
                 std::to_string(ORT_API_VERSION));
}

}  // namespace

Plugin::Plugin(const std::string&) { throw too_old(); }
void Plugin::append(Ort::SessionOptions&) const {}
std::string Plugin::name() const { return ""; }
std::vector<DeviceInfo> Plugin::list(const std::string&) { throw too_old(); }

#endif

}  // namespace kontext
