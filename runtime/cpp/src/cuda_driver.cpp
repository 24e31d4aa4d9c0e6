// The part of the CUDA driver API (https://docs.nvidia.com/cuda/cuda-driver-api/) that names a GPU; as
// runtime/cuda_driver.py.
#include "cuda_driver.hpp"

#include <dlfcn.h>

#include <array>
#include <cstdio>

namespace kontext {
namespace {

constexpr int capability_major = 75, capability_minor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR

// Calls a function of the driver, whose parameters have the arguments' types; false if it is not there or fails.
template <typename... Parameters>
bool call(void* library, const char* name, Parameters... arguments) {
    const auto function = reinterpret_cast<int (*)(Parameters...)>(::dlsym(library, name));
    return function != nullptr && function(arguments...) == 0;
}

}  // namespace

std::optional<Gpu> find_gpu() {
    void* library = ::dlopen("libcuda.so.1", RTLD_NOW);  // never closed: the driver does not support it
    if (library == nullptr) return std::nullopt;
    int count = 0, device = 0, major = 0, minor = 0;
    std::size_t memory = 0;
    std::array<char, 256> name{};
    const bool good = call(library, "cuInit", 0u) && call(library, "cuDeviceGetCount", &count) && count > 0 &&
                      call(library, "cuDeviceGet", &device, 0) &&
                      call(library, "cuDeviceGetName", name.data(), int{name.size() - 1}, device) &&
                      call(library, "cuDeviceTotalMem_v2", &memory, device) &&
                      call(library, "cuDeviceGetAttribute", &major, capability_major, device) &&
                      call(library, "cuDeviceGetAttribute", &minor, capability_minor, device);
    if (!good) return std::nullopt;
    return Gpu{name.data(), 10 * major + minor, memory};
}

std::string describe(const std::optional<Gpu>& gpu) {
    if (!gpu) return "there is no NVIDIA GPU with a working driver";
    char size[32];
    std::snprintf(size, sizeof size, "%.1f GiB", static_cast<double>(gpu->memory) / (1 << 30));
    return gpu->name + ", sm_" + std::to_string(gpu->capability) + ", " + size;
}

}  // namespace kontext
