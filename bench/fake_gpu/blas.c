// cuBLAS on a GPU that computes nothing: every product that PyTorch asks for succeeds. The real library brings a CUDA
// runtime of its own, which would look for a GPU. Arguments that are not looked at are not declared.

#include <stddef.h>

typedef int Status;
typedef void* Handle;

#define NOTHING(name) \
    Status name() { return 0; }

static Status made(Handle* handle) { return *handle = (Handle)(size_t)16, 0; }

Status cublasCreate_v2(Handle* handle) { return made(handle); }
Status cublasGetMathMode(Handle handle, int* mode) { return *mode = 0; }
Status cublasGetPointerMode_v2(Handle handle, int* mode) { return *mode = 0; }
NOTHING(cublasDestroy_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetPointerMode_v2)
NOTHING(cublasSetStream_v2)
NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSgemm_v2)
NOTHING(cublasDgemm_v2)
NOTHING(cublasSgemmEx)
NOTHING(cublasGemmEx)
NOTHING(cublasSgemmStridedBatched)
NOTHING(cublasDgemmStridedBatched)
NOTHING(cublasGemmStridedBatchedEx)
NOTHING(cublasSgemv_v2)
NOTHING(cublasDgemv_v2)
NOTHING(cublasSdot_v2)
NOTHING(cublasDdot_v2)
NOTHING(cublasDotEx)

size_t cublasLtGetVersion(void) { return 130000; }
Status cublasLtMatmulDescCreate(Handle* handle, int compute, int scale) { return made(handle); }
Status cublasLtMatmulPreferenceCreate(Handle* handle) { return made(handle); }
Status cublasLtMatrixLayoutCreate(Handle* handle, int type, unsigned long rows, unsigned long columns, long stride) {
    return made(handle);
}
Status cublasLtMatmulAlgoGetHeuristic(Handle handle, Handle product, Handle a, Handle b, Handle c, Handle d,
                                      Handle preference, int asked, void* results, int* found) {
    return *found = 1, 0;
}
NOTHING(cublasLtMatmul)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
