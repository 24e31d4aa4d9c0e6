// What the three libraries of the phantom GPU know in common, from the environment that __main__.py sets.

#ifndef KONTEXT_PHANTOM_H
#define KONTEXT_PHANTOM_H

#include <stdio.h>
#include <stdlib.h>

#define PHANTOM_PROCESSORS 132
#define PHANTOM_SHARED_DEFAULT 49152
#define PHANTOM_MAX_GRID_YZ 65535
#define PHANTOM_MAX_THREADS 1024

static inline long phantom_number(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value && *value ? atol(value) : otherwise;
}

// Compute capability times ten.
static inline int phantom_architecture(void) { return (int)phantom_number("PHANTOM_ARCHITECTURE", 90); }

static inline size_t phantom_memory(void) { return (size_t)phantom_number("PHANTOM_MEMORY", 80000000000L); }

// Bytes of shared memory that one program may ask for.
static inline int phantom_shared(void) { return (int)phantom_number("PHANTOM_SHARED", 227 * 1024); }

#define PHANTOM_SAY(...) (fprintf(stderr, "phantom GPU: " __VA_ARGS__), fputc('\n', stderr))

#endif
