// Stub CUDA runtime, preloaded before the real one: the functions that PyTorch calls. Kernels are no-ops.
//
// Device memory has a limit and distinct addresses but no contents: copies to it do nothing, and copies from it give zeros.
// Calls that a real device refuses during graph capture fail here too, with a message on stderr.

#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "fake_gpu.h"

#define NO_OP(name, ...) \
    cudaError_t name(__VA_ARGS__) { return cudaSuccess; }
#define PAGE ((size_t)2 << 20)

// -- state --

typedef struct Block {
    char* start;
    size_t size;
    void* mapped;
    size_t length;
    struct Block* next;
} Block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block* blocks;
static size_t used;
static uintptr_t handles = 0x1000;
static int capturing;
static unsigned long long captures;
static cudaError_t last;

static void* handle(void) { return (void*)__atomic_add_fetch(&handles, 16, __ATOMIC_SEQ_CST); }

static cudaError_t fail(cudaError_t error) { return last = error; }

static cudaError_t allowed(const char* call) {
    if (!capturing) return cudaSuccess;
    FAKE_GPU_LOG("%s during graph capture", call);
    return fail(cudaErrorStreamCaptureUnsupported);
}

// Also called by driver.c.
int fake_gpu_on_device(const void* address) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (Block* block = blocks; block && !found; block = block->next)
        found = (const char*)address >= block->start && (const char*)address < block->start + block->size;
    pthread_mutex_unlock(&lock);
    return found;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last;
    last = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) { return last; }

// -- the device --

NO_OP(cudaSetDevice, int device)
NO_OP(cudaDeviceEnablePeerAccess, int peer, unsigned flags)
NO_OP(cudaProfilerStart, void)
NO_OP(cudaProfilerStop, void)

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }

cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) { return *can = 0, cudaSuccess; }

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
    snprintf(text, (size_t)length, "0000:00:00.0");
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "Fake GPU");
    properties->major = fake_gpu_architecture() / 10;
    properties->minor = fake_gpu_architecture() % 10;
    properties->totalGlobalMem = fake_gpu_memory();
    properties->sharedMemPerBlock = FAKE_GPU_SHARED_DEFAULT;
    properties->sharedMemPerBlockOptin = (size_t)fake_gpu_shared();
    properties->sharedMemPerMultiprocessor = (size_t)fake_gpu_shared() + 1024;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = FAKE_GPU_MAX_THREADS;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = FAKE_GPU_MAX_THREADS;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 0x7fffffff;
    properties->maxGridSize[1] = properties->maxGridSize[2] = FAKE_GPU_MAX_GRID_YZ;
    properties->multiProcessorCount = FAKE_GPU_PROCESSORS;
    properties->maxThreadsPerMultiProcessor = fake_gpu_architecture() % 10 && fake_gpu_architecture() < 90 ? 1536 : 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->l2CacheSize = 50 << 20;
    properties->totalConstMem = 65536;
    properties->unifiedAddressing = properties->concurrentKernels = 1;
    properties->asyncEngineCount = 3;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp properties;
    cudaGetDeviceProperties(&properties, device);
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
        case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = FAKE_GPU_SHARED_DEFAULT; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = fake_gpu_shared(); break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = fake_gpu_shared() + 1024; break;
        case cudaDevAttrWarpSize: *value = properties.warpSize; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = properties.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrMaxRegistersPerBlock: *value = properties.regsPerBlock; break;
        default: *value = 1;
    }
    return cudaSuccess;
}

// -- memory --

cudaError_t cudaMalloc(void** address, size_t size) {
    *address = NULL;
    pthread_mutex_lock(&lock);
    int fits = used + size <= fake_gpu_memory();
    used += fits ? size : 0;
    pthread_mutex_unlock(&lock);
    if (!fits) return fail(cudaErrorMemoryAllocation);
    // Reserves addresses only, aligned as by a real driver: no page is ever touched.
    size_t length = size + PAGE;
    char* mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    Block* block = malloc(sizeof *block);
    if (mapped == MAP_FAILED || !block) abort();
    char* start = (char*)(((uintptr_t)mapped + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
    pthread_mutex_lock(&lock);
    *block = (Block){start, size, mapped, length, blocks};
    blocks = block;
    pthread_mutex_unlock(&lock);
    *address = start;
    return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
    if (!address) return cudaSuccess;
    if (allowed("cudaFree")) return last;
    pthread_mutex_lock(&lock);
    for (Block** link = &blocks; *link; link = &(*link)->next) {
        if ((*link)->start != (char*)address) continue;
        Block* block = *link;
        *link = block->next;
        used -= block->size;
        munmap(block->mapped, block->length);
        free(block);
        break;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** address, size_t size, cudaStream_t stream) { return cudaMalloc(address, size); }

cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) { return cudaFree(address); }

cudaError_t cudaMemGetInfo(size_t* unused, size_t* total) {
    *total = fake_gpu_memory();
    *unused = *total - used;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** address, size_t size, unsigned flags) {
    if (allowed("cudaHostAlloc")) return last;
    return posix_memalign(address, 4096, size) ? fail(cudaErrorMemoryAllocation) : cudaSuccess;
}

// FAKE_GPU_PAGE_LOCKING=0: every registration fails, as it may under WSL.
cudaError_t cudaHostRegister(void* address, size_t size, unsigned flags) {
    return fake_gpu_number("FAKE_GPU_PAGE_LOCKING", 1) ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* address) { return free(address), cudaSuccess; }

NO_OP(cudaHostUnregister, void* address)
NO_OP(cudaMemcpyPeerAsync, void* to, int device, const void* from, int other, size_t size, cudaStream_t stream)
NO_OP(cudaMemcpyToSymbol, const void* symbol, const void* from, size_t size, size_t at, enum cudaMemcpyKind kind)
NO_OP(cudaMemset, void* address, int value, size_t size)
NO_OP(cudaMemsetAsync, void* address, int value, size_t size, cudaStream_t stream)

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (!fake_gpu_on_device(to)) memset(to, 0, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, enum cudaMemcpyKind kind) {
    return allowed("cudaMemcpy") ? last : cudaMemcpyAsync(to, from, size, kind, NULL);
}

cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
    return (*address = calloc(1, 1 << 16)) ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* attributes, const void* address) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = fake_gpu_on_device(address) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}

// -- streams, events and graphs --

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = handle(), cudaSuccess; }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
    return *stream = handle(), cudaSuccess;
}

NO_OP(cudaStreamDestroy, cudaStream_t stream)
NO_OP(cudaStreamQuery, cudaStream_t stream)
NO_OP(cudaStreamWaitEvent, cudaStream_t stream, cudaEvent_t event, unsigned flags)
NO_OP(cudaThreadExchangeStreamCaptureMode, enum cudaStreamCaptureMode* mode)

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return allowed("cudaStreamSynchronize"); }

cudaError_t cudaDeviceSynchronize(void) { return allowed("cudaDeviceSynchronize"); }

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) { return *priority = 0, cudaSuccess; }

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t call, void* data, unsigned flags) {
    return call(stream, cudaSuccess, data), cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void* data) { return call(data), cudaSuccess; }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    capturing = 1;
    captures++;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    capturing = 0;
    return *graph = handle(), cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) {
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
    if (id) *id = captures;
    if (graph) *graph = (cudaGraph_t)handle();
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = handle(), cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) { return *event = handle(), cudaSuccess; }

NO_OP(cudaEventDestroy, cudaEvent_t event)
NO_OP(cudaEventRecord, cudaEvent_t event, cudaStream_t stream)
NO_OP(cudaEventRecordWithFlags, cudaEvent_t event, cudaStream_t stream, unsigned flags)

cudaError_t cudaEventQuery(cudaEvent_t event) { return allowed("cudaEventQuery"); }

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return allowed("cudaEventSynchronize"); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
    return *milliseconds = 1, cudaSuccess;
}

NO_OP(cudaGraphDestroy, cudaGraph_t graph)
NO_OP(cudaGraphExecDestroy, cudaGraphExec_t graph)

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
    return *count = 1, cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* instance, cudaGraph_t graph, unsigned long long flags) {
    return *instance = handle(), cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { return allowed("cudaGraphLaunch"); }

// -- kernels --

NO_OP(cudaFuncSetAttribute, const void* function, enum cudaFuncAttribute attribute, int value)
NO_OP(cudaLaunchKernelExC, const cudaLaunchConfig_t* config, const void* function, void** arguments)

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* attributes, const void* function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = FAKE_GPU_MAX_THREADS;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = fake_gpu_architecture();
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks_at_once, const void* function,
                                                                   int threads, size_t shared, unsigned flags) {
    return *blocks_at_once = 2, cudaSuccess;
}

static cudaError_t launch(dim3 grid, dim3 block) {
    unsigned threads = block.x * block.y * block.z;
    if (grid.x && grid.y && grid.z && threads && grid.y <= FAKE_GPU_MAX_GRID_YZ && grid.z <= FAKE_GPU_MAX_GRID_YZ &&
        threads <= FAKE_GPU_MAX_THREADS)
        return cudaSuccess;
    FAKE_GPU_LOG("invalid launch: %u x %u x %u programs, %u threads", grid.x, grid.y, grid.z, threads);
    return fail(cudaErrorInvalidConfiguration);
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
    return launch(grid, block);
}

// Called by the launch code that nvcc generates (crt/host_runtime.h).
cudaError_t __cudaLaunchKernel(void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream) {
    return launch(grid, block);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult* result) {
    static void* driver;
    if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    *function = driver ? dlsym(driver, symbol) : NULL;
    if (driver && !*function) *function = dlsym(driver, "fake_gpu_no_op");
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
