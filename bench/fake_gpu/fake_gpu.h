// Properties of the fake GPU for all three libraries, from the environment variables that wrapper.py sets.

#ifndef KONTEXT_FAKE_GPU_H
#define KONTEXT_FAKE_GPU_H

#include <stdio.h>
#include <stdlib.h>

#define FAKE_GPU_PROCESSORS 132
#define FAKE_GPU_SHARED_DEFAULT 49152
#define FAKE_GPU_MAX_GRID_YZ 65535
#define FAKE_GPU_MAX_THREADS 1024

static inline long fake_gpu_number(const char* name, long fallback) {
    const char* value = getenv(name);
    return value && *value ? atol(value) : fallback;
}

// Compute capability times ten.
static inline int fake_gpu_architecture(void) { return (int)fake_gpu_number("FAKE_GPU_ARCHITECTURE", 90); }

static inline size_t fake_gpu_memory(void) { return (size_t)fake_gpu_number("FAKE_GPU_MEMORY", 80000000000L); }

// Largest shared memory of a program, in bytes.
static inline int fake_gpu_shared(void) { return (int)fake_gpu_number("FAKE_GPU_SHARED", 227 * 1024); }

#define FAKE_GPU_LOG(...) (fprintf(stderr, "fake GPU: " __VA_ARGS__), fputc('\n', stderr))

#endif
