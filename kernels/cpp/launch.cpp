// Launches one of a bundle's compiled kernels from C++ through CUDA's driver API, without Triton or the CUDA toolkit:
// unpacks INT4 weights on the GPU and compares them with the same computed on the CPU.
//
//   g++ -std=c++17 -O2 launch.cpp -ldl -o launch
//   ./launch my-bundle/kernels/sm_89/NNN-dequantize_kernel.cubin dequantize_kernel SHARED WARPS NULLS ROWS COLUMNS
//
// File, symbol, SHARED, WARPS and NULLS are in the entry "dequantize int4, …" of kernels.json, in the cubin's folder. ROWS
// must be a multiple of 64 and COLUMNS of 32. Scales and output are bf16.

#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// The part of cuda.h that a launch needs (CUDA driver API, whose ABI is stable).
using CUresult = int;
using CUdevice = int;
using CUdeviceptr = std::uint64_t;
using CUcontext = struct CUctx_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUstream = struct CUstream_st*;
constexpr int kMaxDynamicShared = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

class Driver {
 public:
  Driver() : library_(dlopen("libcuda.so.1", RTLD_NOW)) {
    if (library_ == nullptr) throw std::runtime_error("NVIDIA's driver is not installed: libcuda.so.1 cannot be loaded");
  }

  template <typename... Arguments>
  void call(const char* name, Arguments... arguments) const {
    auto* function = reinterpret_cast<CUresult (*)(Arguments...)>(dlsym(library_, name));
    if (function == nullptr) throw std::runtime_error(std::string("libcuda.so.1 has no ") + name);
    if (CUresult code = function(arguments...)) {
      throw std::runtime_error(std::string(name) + " failed with error " + std::to_string(code));
    }
  }

 private:
  void* library_;
};

float from_bf16(std::uint16_t bits) {
  std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

std::uint16_t to_bf16(float value) {  // of finite values
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

int unpack_and_compare(const std::vector<std::string>& words) {
  if (words.size() != 7) {
    std::fprintf(stderr, "usage: launch CUBIN SYMBOL SHARED WARPS NULLS ROWS COLUMNS\n");
    return 2;
  }
  const auto number = [&](std::size_t index) { return std::stoul(words[index]); };
  const unsigned shared = number(2), warps = number(3), nulls = number(4);
  const std::size_t rows = number(5), columns = number(6);
  if (rows == 0 || rows % 64 != 0 || columns == 0 || columns % 32 != 0) {
    throw std::runtime_error("ROWS must be a multiple of 64 and COLUMNS of 32");
  }
  std::ifstream file(words[0], std::ios::binary);
  const std::string image((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (image.empty()) throw std::runtime_error(words[0] + " cannot be read");

  std::mt19937 random(1);
  std::vector<std::uint8_t> packed(rows * columns / 2);
  for (auto& byte : packed) byte = static_cast<std::uint8_t>(random());
  std::vector<std::uint16_t> scales(rows / 64 * columns), out(rows * columns, 0x7FC0);  // NaN, to find weights that are not written
  for (auto& scale : scales) scale = to_bf16(std::uniform_real_distribution<float>(0.01f, 0.1f)(random));

  const Driver cuda;
  CUdevice device = 0;
  CUcontext context = nullptr;
  CUmodule module = nullptr;
  CUfunction function = nullptr;
  cuda.call("cuInit", 0u);
  cuda.call("cuDeviceGet", &device, 0);
  cuda.call("cuDevicePrimaryCtxRetain", &context, device);
  cuda.call("cuCtxSetCurrent", context);
  cuda.call("cuModuleLoadData", &module, static_cast<const void*>(image.data()));
  cuda.call("cuModuleGetFunction", &function, module, words[1].c_str());
  cuda.call("cuFuncSetAttribute", function, kMaxDynamicShared, static_cast<int>(shared));

  CUdeviceptr buffers[3] = {};
  const std::size_t sizes[3] = {packed.size(), scales.size() * 2, out.size() * 2};
  for (int i = 0; i < 3; ++i) cuda.call("cuMemAlloc_v2", &buffers[i], sizes[i]);
  cuda.call("cuMemcpyHtoD_v2", buffers[0], static_cast<const void*>(packed.data()), sizes[0]);
  cuda.call("cuMemcpyHtoD_v2", buffers[1], static_cast<const void*>(scales.data()), sizes[1]);
  cuda.call("cuMemcpyHtoD_v2", buffers[2], static_cast<const void*>(out.data()), sizes[2]);

  CUdeviceptr null = 0;
  auto height = static_cast<std::int32_t>(rows), half_width = static_cast<std::int32_t>(columns / 2);
  std::vector<void*> parameters = {&buffers[0], &buffers[1], &buffers[2], &height, &half_width};
  parameters.insert(parameters.end(), nulls, &null);
  const unsigned across = static_cast<unsigned>((columns + 127) / 128);
  cuda.call("cuLaunchKernel", function, static_cast<unsigned>(rows / 64), across, 1u, 32 * warps, 1u, 1u, shared,
            CUstream{nullptr}, parameters.data(), static_cast<void**>(nullptr));
  cuda.call("cuCtxSynchronize");
  cuda.call("cuMemcpyDtoH_v2", static_cast<void*>(out.data()), buffers[2], sizes[2]);

  std::size_t wrong = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t column = 0; column < columns; ++column) {
      const std::uint8_t byte = packed[(row * columns + column) / 2];
      const int nibble = column % 2 ? byte >> 4 : byte & 15;
      const float weight = (nibble > 7 ? nibble - 16 : nibble) * from_bf16(scales[row / 64 * columns + column]);
      wrong += from_bf16(out[row * columns + column]) != from_bf16(to_bf16(weight));
    }
  }
  std::printf("%zu of %zu weights differ\n", wrong, rows * columns);
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
  try {
    return unpack_and_compare({words + 1, words + count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
