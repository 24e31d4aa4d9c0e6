// Stub cuBLAS: every matrix product succeeds and does nothing. The real library contains a CUDA runtime that would look
// for a GPU. Unused arguments are not declared.

#include <stddef.h>

typedef int Status;
typedef void* Handle;

#define NO_OP(name) \
    Status name() { return 0; }

static Status made(Handle* handle) { return *handle = (Handle)(size_t)16, 0; }

Status cublasCreate_v2(Handle* handle) { return made(handle); }
Status cublasGetMathMode(Handle handle, int* mode) { return *mode = 0; }
Status cublasGetPointerMode_v2(Handle handle, int* mode) { return *mode = 0; }
NO_OP(cublasDestroy_v2)
NO_OP(cublasSetMathMode)
NO_OP(cublasSetPointerMode_v2)
NO_OP(cublasSetStream_v2)
NO_OP(cublasSetWorkspace_v2)
NO_OP(cublasSgemm_v2)
NO_OP(cublasDgemm_v2)
NO_OP(cublasSgemmEx)
NO_OP(cublasGemmEx)
NO_OP(cublasSgemmStridedBatched)
NO_OP(cublasDgemmStridedBatched)
NO_OP(cublasGemmStridedBatchedEx)
NO_OP(cublasSgemv_v2)
NO_OP(cublasDgemv_v2)
NO_OP(cublasSdot_v2)
NO_OP(cublasDdot_v2)
NO_OP(cublasDotEx)

size_t cublasLtGetVersion(void) { return 130000; }
Status cublasLtMatmulDescCreate(Handle* handle, int compute, int scale) { return made(handle); }
Status cublasLtMatmulPreferenceCreate(Handle* handle) { return made(handle); }
Status cublasLtMatrixLayoutCreate(Handle* handle, int type, unsigned long rows, unsigned long columns, long stride) {
    return made(handle);
}
Status cublasLtMatmulAlgoGetHeuristic(Handle handle, Handle product, Handle a, Handle b, Handle c, Handle d,
                                      Handle preference, int requested, void* results, int* found) {
    return *found = 1, 0;
}
NO_OP(cublasLtMatmul)
NO_OP(cublasLtMatmulDescDestroy)
NO_OP(cublasLtMatmulDescSetAttribute)
NO_OP(cublasLtMatmulPreferenceDestroy)
NO_OP(cublasLtMatmulPreferenceSetAttribute)
NO_OP(cublasLtMatrixLayoutDestroy)
NO_OP(cublasLtMatrixLayoutSetAttribute)
