// What ONNX Runtime's CUDA provider calls beyond runtime.c, where doing nothing would not do.

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdlib.h>

static uintptr_t handles = 0x900000;

static void* handle(void) { return (void*)__atomic_add_fetch(&handles, 16, __ATOMIC_SEQ_CST); }

const char* cudaGetErrorName(cudaError_t error) { return "cudaErrorFakeGpu"; }

const char* cudaGetErrorString(cudaError_t error) { return "refused by the fake GPU"; }

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long flags) {
    return *made = handle(), cudaSuccess;
}

cudaError_t cudaLibraryLoadData(cudaLibrary_t* made, const void* code, enum cudaJitOption* options, void** values, unsigned count,
                                enum cudaLibraryOption* library_options, void** library_values, unsigned library_count) {
    return *made = handle(), cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t* made, cudaLibrary_t library, const char* name) { return *made = handle(), cudaSuccess; }

cudaError_t __cudaGetKernel(cudaKernel_t* made, const void* function) { return *made = (cudaKernel_t)function, cudaSuccess; }

void** __cudaRegisterFatBinary(void* code) {
    static void* registered[4];
    return registered;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* made, const struct cudaMemPoolProps* properties) { return *made = handle(), cudaSuccess; }

cudaError_t cudaMallocFromPoolAsync(void** address, size_t size, cudaMemPool_t pool, cudaStream_t stream) {
    return cudaMalloc(address, size);
}

cudaError_t cudaMallocHost(void** address, size_t size) {
    *address = malloc(size ? size : 1);
    return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned flags) { return *made = handle(), cudaSuccess; }
