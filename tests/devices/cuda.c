/* Stands in for NVIDIA's libraries of CUDA 13, so that ONNX Runtime's own CUDA provider runs models where there is no device.
 *
 * Its memory is a device's: whoever reads or writes it without copying through this library ends with a fault. All is done at once, on the
 * processor: copies, fills, and cuBLAS' multiplication of matrices in single precision. What else the provider may ask for, kernels above
 * all, is refused by name, so that a graph that needs it fails instead of answering with nonsense.
 *
 * CUDA_STAND_IN_DEVICES: how many devices there are (1). CUDA_STAND_IN_BYTES: the memory of each (1 GiB, all share it).
 * CUDA_STAND_IN_LOG: a file that gets a line for what is done: `take BYTES`, `give BYTES`, `copy BYTES`, `multiply ROWS COLUMNS INNER`, with
 * `thread NAME` before it, and those of TensorRT.
 *
 * Numbers and layouts are those of CUDA's documented interface: https://docs.nvidia.com/cuda/cuda-runtime-api/ and
 * https://docs.nvidia.com/cuda/cublas/.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device.h"

typedef int Status;
typedef struct {
    unsigned x, y, z;
} Dimensions;

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_SUPPORTED = 801 };
enum { BLAS_SUCCESS = 0, BLAS_NOT_INITIALIZED = 1, BLAS_INVALID_VALUE = 7, BLAS_NOT_SUPPORTED = 15 };
enum { MAX_THREADS_PER_BLOCK = 1, WARP_SIZE = 10, MULTIPROCESSOR_COUNT = 16, CAPABILITY_MAJOR = 75 };
enum { UNREGISTERED_MEMORY = 0, DEVICE_MEMORY = 2 };
enum { VERSION = 13000, PIECE = 512 };

/* ---- What happened ---- */

static FILE *log_file;

void note(const char *format, ...) {
    if (!log_file) return;
    va_list values;
    va_start(values, format);
    vfprintf(log_file, format, values);
    va_end(values);
}

void note_thread(void) {
    char name[16] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    note("thread %s\n", name);
}

/* ---- The device and its memory ---- */

struct Block {
    size_t start, bytes;
    struct Block *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int devices = 1;
static size_t device_bytes = (size_t)1 << 30;
/* The same memory twice: what addresses of the device are, which nobody may touch, and where it is read and written here. */
static char *device, *shadow;
/* What is taken of it, by its start. */
static struct Block *blocks;

__attribute__((constructor)) static void begin(void) {
    const char *value;
    if ((value = getenv("CUDA_STAND_IN_DEVICES"))) devices = atoi(value);
    if ((value = getenv("CUDA_STAND_IN_BYTES"))) device_bytes = strtoull(value, NULL, 10);
    if ((value = getenv("CUDA_STAND_IN_LOG")) && (log_file = fopen(value, "a"))) setvbuf(log_file, NULL, _IOLBF, 0);
    int file = memfd_create("device", 0);
    if (file < 0 || ftruncate(file, (off_t)device_bytes)) abort();
    device = mmap(NULL, device_bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
    shadow = mmap(NULL, device_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (device == MAP_FAILED || shadow == MAP_FAILED) abort();
    close(file);
}

int is_on_device(const void *address) {
    return (const char *)address >= device && (const char *)address < device + device_bytes;
}

void *reach(const void *address) {
    return is_on_device(address) ? shadow + ((const char *)address - device) : (void *)address;
}

/* Whether so many bytes from an address on lie in one block that is taken, or not on the device. */
static int is_taken(const void *address, size_t bytes) {
    if (!is_on_device(address)) return 1;
    size_t start = (size_t)((const char *)address - device);
    pthread_mutex_lock(&lock);
    struct Block *block = blocks;
    while (block && start >= block->start + block->bytes) block = block->next;
    int taken = block && start >= block->start && start + bytes <= block->start + block->bytes;
    pthread_mutex_unlock(&lock);
    return taken;
}

/* The last error of each thread is kept until it is asked for. */
static _Thread_local Status last;

static Status answer(Status status) {
    if (status != SUCCESS) last = status;
    return status;
}

static Status check_device(int index) {
    if (devices == 0) return answer(NO_DEVICE);
    return answer(index < 0 || index >= devices ? INVALID_DEVICE : SUCCESS);
}

PUBLIC Status cudaMalloc(void **address, size_t bytes) {
    bytes = bytes ? (bytes + PIECE - 1) / PIECE * PIECE : PIECE;
    pthread_mutex_lock(&lock);
    size_t start = 0;
    struct Block **place = &blocks;
    while (*place && (*place)->start - start < bytes) {
        start = (*place)->start + (*place)->bytes;
        place = &(*place)->next;
    }
    struct Block *block = *place || device_bytes - start >= bytes ? malloc(sizeof *block) : NULL;
    if (block) {
        *block = (struct Block){start, bytes, *place};
        *place = block;
        *address = device + start;
    }
    pthread_mutex_unlock(&lock);
    if (!block) return answer(OUT_OF_MEMORY);
    note("take %zu\n", bytes);
    return SUCCESS;
}

PUBLIC Status cudaFree(void *address) {
    struct Block *block = NULL;
    pthread_mutex_lock(&lock);
    for (struct Block **place = &blocks; *place; place = &(*place)->next)
        if (device + (*place)->start == address) {
            block = *place;
            *place = block->next;
            break;
        }
    pthread_mutex_unlock(&lock);
    if (address && !block) return answer(INVALID_VALUE);
    if (block) note("give %zu\n", block->bytes);
    free(block);
    return SUCCESS;
}

PUBLIC Status cudaMemGetInfo(size_t *available, size_t *total) {
    size_t taken = 0;
    pthread_mutex_lock(&lock);
    for (struct Block *block = blocks; block; block = block->next) taken += block->bytes;
    pthread_mutex_unlock(&lock);
    *available = device_bytes - taken;
    *total = device_bytes;
    return SUCCESS;
}

PUBLIC Status cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    (void)kind;
    if (!is_taken(to, bytes) || !is_taken(from, bytes)) return answer(INVALID_VALUE);
    note("copy %zu\n", bytes);
    memmove(reach(to), reach(from), bytes);
    return SUCCESS;
}

PUBLIC Status cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, Handle stream) {
    (void)stream;
    return cudaMemcpy(to, from, bytes, kind);
}

PUBLIC Status cudaMemset(void *at, int value, size_t bytes) {
    if (!is_taken(at, bytes)) return answer(INVALID_VALUE);
    memset(reach(at), value, bytes);
    return SUCCESS;
}

PUBLIC Status cudaMemsetAsync(void *at, int value, size_t bytes, Handle stream) {
    (void)stream;
    return cudaMemset(at, value, bytes);
}

PUBLIC Status cudaMallocHost(void **address, size_t bytes) {
    *address = malloc(bytes ? bytes : 1);
    return answer(*address ? SUCCESS : OUT_OF_MEMORY);
}

PUBLIC Status cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    return cudaMallocHost(address, bytes);
}

PUBLIC Status cudaFreeHost(void *address) {
    free(address);
    return SUCCESS;
}

struct Attributes {
    int type, device;
    void *on_device, *on_host;
};

PUBLIC Status cudaPointerGetAttributes(struct Attributes *attributes, const void *address) {
    int is_device = is_on_device(address);
    *attributes = (struct Attributes){
        .type = is_device ? DEVICE_MEMORY : UNREGISTERED_MEMORY,
        .on_device = is_device ? (void *)address : NULL,
    };
    return SUCCESS;
}

/* ---- What the device says of itself ---- */

PUBLIC Status cudaGetDeviceCount(int *count) {
    *count = devices;
    return check_device(0);
}

PUBLIC Status cudaSetDevice(int index) { return check_device(index); }

PUBLIC Status cudaGetDevice(int *index) {
    *index = 0;
    return check_device(0);
}

/* How the properties begin; what follows is left as it is. */
struct Properties {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t memory, shared_memory_per_block;
    int registers_per_block, warp_size;
    size_t memory_pitch;
    int max_threads_per_block, max_threads[3], max_grid[3];
    size_t constant_memory;
    int major, minor;
    size_t texture_alignment, texture_pitch_alignment;
    int multiprocessors;
};

PUBLIC Status cudaGetDeviceProperties(struct Properties *properties, int index) {
    *properties = (struct Properties){
        .name = "a stand-in for a device",
        .memory = device_bytes,
        .shared_memory_per_block = 48 << 10,
        .registers_per_block = 1 << 16,
        .warp_size = 32,
        .max_threads_per_block = 1024,
        .max_threads = {1024, 1024, 64},
        .max_grid = {2147483647, 65535, 65535},
        .major = 8,
        .multiprocessors = 1,
    };
    return check_device(index);
}

PUBLIC Status cudaDeviceGetAttribute(int *value, int attribute, int index) {
    switch (attribute) {
    case MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case WARP_SIZE: *value = 32; break;
    case MULTIPROCESSOR_COUNT: *value = 1; break;
    case CAPABILITY_MAJOR: *value = 8; break;
    default: *value = 0;
    }
    return check_device(index);
}

PUBLIC Status cudaDeviceSynchronize(void) { return SUCCESS; }

PUBLIC Status cudaDriverGetVersion(int *version) {
    *version = VERSION;
    return SUCCESS;
}

PUBLIC Status cudaRuntimeGetVersion(int *version) {
    *version = VERSION;
    return SUCCESS;
}

PUBLIC Status cudaPeekAtLastError(void) { return last; }

PUBLIC Status cudaGetLastError(void) {
    Status status = last;
    last = SUCCESS;
    return status;
}

PUBLIC const char *cudaGetErrorString(Status status) {
    switch (status) {
    case SUCCESS: return "no error";
    case INVALID_VALUE: return "invalid argument";
    case OUT_OF_MEMORY: return "out of memory";
    case NO_DEVICE: return "no CUDA-capable device is detected";
    case INVALID_DEVICE: return "invalid device ordinal";
    case NOT_SUPPORTED: return "operation not supported";
    default: return "unknown error";
    }
}

PUBLIC const char *cudaGetErrorName(Status status) { return cudaGetErrorString(status); }

/* ---- Streams and events: all is done at once ---- */

static Status make(Handle *handle) {
    *handle = malloc(1);
    return answer(*handle ? SUCCESS : OUT_OF_MEMORY);
}

static Status unmake(Handle handle) {
    free(handle);
    return SUCCESS;
}

PUBLIC Status cudaStreamCreate(Handle *stream) { return make(stream); }
PUBLIC Status cudaStreamCreateWithFlags(Handle *stream, unsigned flags) { return (void)flags, make(stream); }
PUBLIC Status cudaStreamDestroy(Handle stream) { return unmake(stream); }
PUBLIC Status cudaStreamSynchronize(Handle stream) { return (void)stream, SUCCESS; }
PUBLIC Status cudaStreamWaitEvent(Handle stream, Handle event, unsigned flags) {
    return (void)stream, (void)event, (void)flags, SUCCESS;
}
PUBLIC Status cudaStreamIsCapturing(Handle stream, int *is_capturing) { return (void)stream, *is_capturing = 0, SUCCESS; }
PUBLIC Status cudaEventCreate(Handle *event) { return make(event); }
PUBLIC Status cudaEventCreateWithFlags(Handle *event, unsigned flags) { return (void)flags, make(event); }
PUBLIC Status cudaEventDestroy(Handle event) { return unmake(event); }
PUBLIC Status cudaEventRecord(Handle event, Handle stream) { return (void)event, (void)stream, SUCCESS; }
PUBLIC Status cudaEventRecordWithFlags(Handle event, Handle stream, unsigned flags) {
    return (void)event, (void)stream, (void)flags, SUCCESS;
}
PUBLIC Status cudaEventSynchronize(Handle event) { return (void)event, SUCCESS; }

PUBLIC Status cudaLaunchHostFunc(Handle stream, void (*function)(void *), void *data) {
    (void)stream;
    function(data);
    return SUCCESS;
}

/* ---- Kernels: known by name, and refused ---- */

struct Kernel {
    const void *function;
    const char *name;
    struct Kernel *next;
};

static struct Kernel *kernels;

static Status refuse(const char *what) {
    fprintf(stderr, "the stand-in for a CUDA device was asked for %s, which it does not have\n", what);
    return answer(NOT_SUPPORTED);
}

static const char *kernel_name(const void *function) {
    const char *name = "an unknown kernel";
    pthread_mutex_lock(&lock);
    for (struct Kernel *kernel = kernels; kernel; kernel = kernel->next)
        if (kernel->function == function) name = kernel->name;
    pthread_mutex_unlock(&lock);
    return name;
}

PUBLIC void **__cudaRegisterFatBinary(void *binary) {
    static void *handle;
    (void)binary;
    return &handle;
}
PUBLIC void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
PUBLIC void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
PUBLIC void __cudaRegisterVar(void) {}

PUBLIC void __cudaRegisterFunction(void **handle, const void *function, char *on_device, const char *name) {
    (void)handle, (void)on_device;
    struct Kernel *kernel = malloc(sizeof *kernel);
    if (!kernel) abort();
    pthread_mutex_lock(&lock);
    *kernel = (struct Kernel){function, name, kernels};
    kernels = kernel;
    pthread_mutex_unlock(&lock);
}

PUBLIC unsigned __cudaPushCallConfiguration(void) { return 0; }

PUBLIC Status __cudaPopCallConfiguration(Dimensions *grid, Dimensions *block, size_t *shared, Handle *stream) {
    *grid = *block = (Dimensions){1, 1, 1};
    *shared = 0;
    *stream = NULL;
    return SUCCESS;
}

PUBLIC Status __cudaGetKernel(const void **kernel, const void *function) { return *kernel = function, SUCCESS; }
PUBLIC Status __cudaLaunchKernel(const void *kernel) { return refuse(kernel_name(kernel)); }
PUBLIC Status cudaLaunchKernel(const void *function) { return refuse(kernel_name(function)); }

#define REFUSED(name) \
    PUBLIC Status name(void) { return refuse(#name); }

REFUSED(cuTensorMapEncodeTiled)
REFUSED(cudaEventElapsedTime)
REFUSED(cudaFreeAsync)
REFUSED(cudaFuncGetAttributes)
REFUSED(cudaFuncSetAttribute)
REFUSED(cudaGetDriverEntryPointByVersion)
REFUSED(cudaGraphDestroy)
REFUSED(cudaGraphExecDestroy)
REFUSED(cudaGraphInstantiate)
REFUSED(cudaGraphLaunch)
REFUSED(cudaKernelSetAttributeForDevice)
REFUSED(cudaLaunchCooperativeKernel)
REFUSED(cudaLaunchKernelExC)
REFUSED(cudaLibraryGetKernel)
REFUSED(cudaLibraryLoadData)
REFUSED(cudaLibraryUnload)
REFUSED(cudaMallocFromPoolAsync)
REFUSED(cudaMemPoolCreate)
REFUSED(cudaMemPoolDestroy)
REFUSED(cudaMemPoolGetAttribute)
REFUSED(cudaMemPoolSetAttribute)
REFUSED(cudaMemPoolTrimTo)
REFUSED(cudaMemcpy2DAsync)
REFUSED(cudaMemcpyFromSymbol)
REFUSED(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags)
REFUSED(cudaStreamBeginCapture)
REFUSED(cudaStreamEndCapture)

/* ---- cuBLAS ---- */

static _Atomic int blas_mode;

PUBLIC Status cublasCreate_v2(Handle *handle) { return make(handle) || devices == 0 ? BLAS_NOT_INITIALIZED : BLAS_SUCCESS; }
PUBLIC Status cublasDestroy_v2(Handle handle) { return unmake(handle); }
PUBLIC Status cublasLtCreate(Handle *handle) { return cublasCreate_v2(handle); }
PUBLIC Status cublasLtDestroy(Handle handle) { return unmake(handle); }
PUBLIC Status cublasSetStream_v2(Handle handle, Handle stream) { return (void)handle, (void)stream, BLAS_SUCCESS; }

PUBLIC Status cublasSetMathMode(Handle handle, int mode) {
    (void)handle;
    blas_mode = mode;
    return BLAS_SUCCESS;
}

PUBLIC Status cublasGetMathMode(Handle handle, int *mode) {
    (void)handle;
    *mode = blas_mode;
    return BLAS_SUCCESS;
}

PUBLIC const char *cublasGetStatusString(Status status) { return status ? "not supported" : "success"; }
PUBLIC const char *cublasGetStatusName(Status status) { return cublasGetStatusString(status); }

/* result = alpha * left * right + beta * result; by columns: left is rows x inner, right is inner x columns, either may be transposed. */
PUBLIC Status cublasSgemm_v2(Handle handle, int transpose_left, int transpose_right, int rows, int columns, int inner,
                             const float *alpha, const float *left, int left_step, const float *right, int right_step,
                             const float *beta, float *result, int result_step) {
    (void)handle;
    size_t left_bytes = (size_t)left_step * (size_t)(transpose_left ? rows : inner) * sizeof *left;
    size_t right_bytes = (size_t)right_step * (size_t)(transpose_right ? inner : columns) * sizeof *right;
    size_t result_bytes = (size_t)result_step * (size_t)columns * sizeof *result;
    if (!is_on_device(left) || !is_on_device(right) || !is_on_device(result) || !is_taken(left, left_bytes) ||
        !is_taken(right, right_bytes) || !is_taken(result, result_bytes))
        return BLAS_INVALID_VALUE;
    /* As the documentation of ONNX and of clients has it, by rows, it is the other way round. */
    note_thread();
    note("multiply %d %d %d\n", columns, rows, inner);
    const float *l = reach(left), *r = reach(right);
    float *out = reach(result), by = *(float *)reach(alpha), before = *(float *)reach(beta);
    for (size_t column = 0; column < (size_t)columns; column++)
        for (size_t row = 0; row < (size_t)rows; row++) {
            float sum = 0;
            for (size_t i = 0; i < (size_t)inner; i++)
                sum += l[transpose_left ? row * left_step + i : i * left_step + row] *
                       r[transpose_right ? i * right_step + column : column * right_step + i];
            float *at = &out[column * result_step + row];
            *at = by * sum + (before == 0 ? 0 : before * *at);
        }
    return BLAS_SUCCESS;
}

#define BLAS_REFUSED(name) \
    PUBLIC Status name(void) { return refuse(#name), BLAS_NOT_SUPPORTED; }

BLAS_REFUSED(cublasDgeam)
BLAS_REFUSED(cublasDgemmBatched)
BLAS_REFUSED(cublasDgemmStridedBatched)
BLAS_REFUSED(cublasDgemm_v2)
BLAS_REFUSED(cublasDgetrfBatched)
BLAS_REFUSED(cublasDgetriBatched)
BLAS_REFUSED(cublasGemmBatchedEx)
BLAS_REFUSED(cublasGemmEx)
BLAS_REFUSED(cublasGemmStridedBatchedEx)
BLAS_REFUSED(cublasLtMatmul)
BLAS_REFUSED(cublasLtMatmulAlgoConfigSetAttribute)
BLAS_REFUSED(cublasLtMatmulAlgoGetHeuristic)
BLAS_REFUSED(cublasLtMatmulAlgoInit)
BLAS_REFUSED(cublasLtMatmulDescCreate)
BLAS_REFUSED(cublasLtMatmulDescDestroy)
BLAS_REFUSED(cublasLtMatmulDescSetAttribute)
BLAS_REFUSED(cublasLtMatmulPreferenceCreate)
BLAS_REFUSED(cublasLtMatmulPreferenceDestroy)
BLAS_REFUSED(cublasLtMatmulPreferenceSetAttribute)
BLAS_REFUSED(cublasLtMatrixLayoutCreate)
BLAS_REFUSED(cublasLtMatrixLayoutDestroy)
BLAS_REFUSED(cublasLtMatrixLayoutSetAttribute)
BLAS_REFUSED(cublasLtMatrixTransform)
BLAS_REFUSED(cublasLtMatrixTransformDescCreate)
BLAS_REFUSED(cublasLtMatrixTransformDescDestroy)
BLAS_REFUSED(cublasScopy_v2)
BLAS_REFUSED(cublasSgeam)
BLAS_REFUSED(cublasSgemmBatched)
BLAS_REFUSED(cublasSgemmStridedBatched)
BLAS_REFUSED(cublasSgetrfBatched)
BLAS_REFUSED(cublasSgetriBatched)
BLAS_REFUSED(cublasSscal_v2)
