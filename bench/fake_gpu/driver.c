// Stub CUDA driver (libcuda.so.1): the functions that Triton, torch.compile and kernels/driver.py call. Kernels are no-ops.
//
// Modules must be ELF files, and launches within the architecture's limits; FAKE_GPU_TRACE=1 lists launches.

#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

#include "fake_gpu.h"

#define NO_OP(name, ...) \
    CUresult name(__VA_ARGS__) { return CUDA_SUCCESS; }

typedef struct {
    char name[128];
    int shared;
} Function;

NO_OP(fake_gpu_no_op, void)
NO_OP(cuInit, unsigned flags)
NO_OP(cuCtxSetCurrent, CUcontext context)
NO_OP(cuCtxSynchronize, void)
NO_OP(cuCtxSetLimit, CUlimit limit, size_t value)
NO_OP(cuModuleUnload, CUmodule module)
NO_OP(cuFuncSetCacheConfig, CUfunction function, CUfunc_cache config)

CUresult cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }

CUresult cuDeviceGet(CUdevice* device, int ordinal) { return *device = 0, CUDA_SUCCESS; }

CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }

CUresult cuDeviceGetName(char* name, int length, CUdevice device) { return snprintf(name, (size_t)length, "Fake GPU"), CUDA_SUCCESS; }

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice device) { return *bytes = fake_gpu_memory(), CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }

CUresult cuCtxGetCurrent(CUcontext* context) { return *context = (CUcontext)(uintptr_t)1, CUDA_SUCCESS; }

CUresult cuCtxGetLimit(size_t* value, CUlimit limit) { return *value = 1 << 20, CUDA_SUCCESS; }

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) { return cuCtxGetCurrent(context); }

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    if (flags) *flags = 0;
    return *active = 1, CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) { return *text = "refused by the fake GPU", CUDA_SUCCESS; }

CUresult cuGetErrorName(CUresult error, const char** text) { return *text = "FAKE_GPU", CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = fake_gpu_architecture() / 10; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = fake_gpu_architecture() % 10; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = FAKE_GPU_SHARED_DEFAULT; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = fake_gpu_shared(); break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = fake_gpu_shared() + 1024; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = FAKE_GPU_PROCESSORS; break;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
        default: *value = 1;
    }
    return CUDA_SUCCESS;
}

static CUresult loaded(CUmodule* module, const void* image) {
    if (memcmp(image, "\177ELF", 4)) {
        FAKE_GPU_LOG("a module is not machine code: it is not an ELF file");
        return CUDA_ERROR_INVALID_IMAGE;
    }
    return *module = (CUmodule)(uintptr_t)1, CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) { return loaded(module, image); }

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned count, CUjit_option* options, void** values) {
    return loaded(module, image);
}

CUresult cuModuleLoad(CUmodule* module, const char* path) {
    char start[4] = {0};
    FILE* file = fopen(path, "rb");
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    size_t count = fread(start, 1, sizeof start, file);
    fclose(file);
    return count == sizeof start ? loaded(module, start) : CUDA_ERROR_INVALID_IMAGE;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    Function* made = calloc(1, sizeof *made);
    if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
    strncpy(made->name, name, sizeof made->name - 1);
    return *function = (CUfunction)made, CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? FAKE_GPU_MAX_THREADS
             : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 64
                                                                  : 0;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    Function* kernel = (Function*)function;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value > fake_gpu_shared()) {
        FAKE_GPU_LOG("%s requests %d bytes of shared memory; the limit is %d", kernel->name, value, fake_gpu_shared());
        return CUDA_ERROR_INVALID_VALUE;
    }
    return kernel->shared = value, CUDA_SUCCESS;
}

static CUresult launch(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared) {
    if (fake_gpu_number("FAKE_GPU_TRACE", 0))
        FAKE_GPU_LOG("%s: %u x %u x %u programs, %u threads, %u bytes shared", function->name, x, y, z, threads, shared);
    int opted = shared <= FAKE_GPU_SHARED_DEFAULT || (int)shared <= function->shared;
    if (x && y && z && y <= FAKE_GPU_MAX_GRID_YZ && z <= FAKE_GPU_MAX_GRID_YZ && threads && threads <= FAKE_GPU_MAX_THREADS &&
        opted)
        return CUDA_SUCCESS;
    FAKE_GPU_LOG("invalid launch of %s: %u x %u x %u programs, %u threads, %u bytes shared, %d bytes opted in",
                 function->name, x, y, z, threads, shared, function->shared);
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                        unsigned block_z, unsigned shared, CUstream stream, void** parameters, void** extra) {
    return launch((Function*)function, x, y, z, block_x * block_y * block_z, shared);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
    return launch((Function*)function, config->gridDimX, config->gridDimY, config->gridDimZ,
                  config->blockDimX * config->blockDimY * config->blockDimZ, config->sharedMemBytes);
}

// Triton checks with this that a tensor is on the GPU.
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
    int (*on_device)(const void*) = (int (*)(const void*))dlsym(RTLD_DEFAULT, "fake_gpu_on_device");
    if (on_device && !on_device((const void*)(uintptr_t)address)) return CUDA_ERROR_INVALID_VALUE;
    return *(CUdeviceptr*)value = address, CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int* count, CUfunction function, const CUlaunchConfig* config) {
    return *count = 1, CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* count, CUfunction function, int threads, size_t shared) {
    return *count = 1, CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    return CUDA_SUCCESS;
}
