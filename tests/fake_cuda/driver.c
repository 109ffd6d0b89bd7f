/* A CUDA driver without a device, for tests: answers for libcudart, cuBLAS and libcuda when preloaded.

   Device memory is host memory up to a capacity.  Kernels compute nothing; each device has a timeline that a launch
   lengthens, that events read and that synchronising waits for.  The functions here have a meaning; `build.py` adds
   one that returns "success" for every other name that torch and Triton import.

   Environment: FAKE_DEVICES (1), FAKE_MEMORY bytes (79 GiB), FAKE_CAPABILITY (90, or "90,75" by device),
   FAKE_NAME ("NVIDIA H100 80GB HBM3", or several with ";" between), FAKE_KERNEL_US (5), FAKE_UUID (0): a number within the
   UUIDs, by which longvis locks GPUs. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#undef cudaGetDeviceProperties

enum { DEVICES = 8, BLOCKS = 1 << 16, CONTEXT_BYTES = 500 << 20, COPY_LIMIT = 1 << 20 };
static const double CLOCK_HZ = 1.755e9;

typedef struct { char *start; size_t size; int device; } Block;
typedef struct { double at; } Event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block blocks[BLOCKS];
static int block_count;
static size_t used[DEVICES];
static double busy_until[DEVICES];
static const void *spin_kernel;
static __thread int current;
static __thread cudaError_t last_error;
static __thread struct { dim3 grid, block; size_t shared; void *stream; } next_launch;

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

/* The entry of a list for a device; the last one counts for all further devices. */
static const char *entry(const char *list, char separator, int device, char *out, size_t size) {
    const char *next;
    while (device-- > 0 && (next = strchr(list, separator))) list = next + 1;
    snprintf(out, size, "%.*s", (int)strcspn(list, (char[]){separator, 0}), list);
    return out;
}

static int device_count(void) { return atoi(setting("FAKE_DEVICES", "1")); }
static size_t capacity(void) { return strtoull(setting("FAKE_MEMORY", "84825604096"), NULL, 10); }
static int capability(int device) {
    char text[32];
    return atoi(entry(setting("FAKE_CAPABILITY", "90"), ',', device, text, sizeof text));
}
static cudaError_t fail(cudaError_t error) { return last_error = error; }

/* Time ------------------------------------------------------------------------------------------------------- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void occupy(double seconds) {
    pthread_mutex_lock(&lock);
    double start = now();
    if (busy_until[current] > start) start = busy_until[current];
    busy_until[current] = start + seconds;
    pthread_mutex_unlock(&lock);
}

void fake_launch(void) { occupy(atof(setting("FAKE_KERNEL_US", "5")) * 1e-6); }

static cudaError_t wait_until(double at) {
    double left = at - now();
    if (left > 0) nanosleep(&(struct timespec){(time_t)left, (long)((left - (time_t)left) * 1e9)}, NULL);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = (cudaEvent_t)calloc(1, sizeof(Event));
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    double t = now();
    ((Event *)event)->at = busy_until[current] > t ? busy_until[current] : t;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, 0);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    *ms = (float)((((Event *)end)->at - ((Event *)start)->at) * 1e3);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait_until(((Event *)event)->at); }
cudaError_t cudaDeviceSynchronize(void) { return wait_until(busy_until[current]); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait_until(busy_until[current]); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = (cudaStream_t)calloc(1, 16);
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                     const cudaGraphEdgeData **edges, size_t *count) {
    if (id) *id = 0;
    if (count) *count = 0;
    return cudaStreamIsCapturing(stream, status);
}

/* Memory ----------------------------------------------------------------------------------------------------- */

cudaError_t cudaMalloc(void **pointer, size_t size) {
    *pointer = NULL;
    pthread_mutex_lock(&lock);
    int fits = used[current] + size + CONTEXT_BYTES <= capacity() && block_count < BLOCKS;
    void *start = fits ? mmap(NULL, size + 4096, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : MAP_FAILED;
    if (start != MAP_FAILED) {
        blocks[block_count++] = (Block){start, size, current};
        used[current] += size;
        *pointer = start;
    }
    pthread_mutex_unlock(&lock);
    return *pointer ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void *pointer) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < block_count; i++)
        if (pointer && blocks[i].start == pointer) {
            used[blocks[i].device] -= blocks[i].size;
            munmap(pointer, blocks[i].size + 4096);
            blocks[i] = blocks[--block_count];
            break;
        }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

static int device_of(const void *pointer) {
    int device = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < block_count && device < 0; i++)
        if ((const char *)pointer >= blocks[i].start && (const char *)pointer < blocks[i].start + blocks[i].size)
            device = blocks[i].device;
    pthread_mutex_unlock(&lock);
    return device;
}

cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags) { *p = malloc(size); return cudaSuccess; }
cudaError_t cudaFreeHost(void *p) { free(p); return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = capacity();
    *free_bytes = capacity() - CONTEXT_BYTES - used[current];
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    int device = device_of(pointer);
    memset(found, 0, sizeof *found);
    found->type = device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice;
    found->device = device;
    found->devicePointer = device < 0 ? NULL : (void *)pointer;
    return cudaSuccess;
}
/* Large copies inside devices move nothing: untouched pages cost no host memory. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    fake_launch();
    if (size <= COPY_LIMIT || device_of(to) < 0 || device_of(from) < 0) memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, size, kind, NULL);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t size, cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, stream);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
    fake_launch();
    if (size <= COPY_LIMIT) memset(to, value, size);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, NULL); }

/* Devices ---------------------------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count) { *count = device_count(); return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = current; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= device_count()) return fail(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability(device) / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability(device) % 10; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = capability(device) >= 80 ? 232448 : 65536; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    default: *value = 0;
    }
    return cudaSuccess;
}

static int attribute(enum cudaDeviceAttr which, int device) {
    int value;
    cudaDeviceGetAttribute(&value, which, device);
    return value;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    entry(setting("FAKE_NAME", "NVIDIA H100 80GB HBM3"), ';', device, p->name, sizeof p->name);
    for (int i = 0; i < 16; i++) p->uuid.bytes[i] = (char)(7 * i + device);
    *(int *)p->uuid.bytes = atoi(setting("FAKE_UUID", "0"));
    p->totalGlobalMem = capacity();
    p->major = capability(device) / 10, p->minor = capability(device) % 10;
    p->multiProcessorCount = 132, p->warpSize = 32, p->pciBusID = device + 1;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->sharedMemPerBlock = 49152, p->sharedMemPerMultiprocessor = 233472;
    p->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->l2CacheSize = 50 << 20;
    p->unifiedAddressing = p->canMapHostMemory = p->concurrentKernels = 1, p->textureAlignment = 512;
    return cudaSuccess;
}

/* Kernels ---------------------------------------------------------------------------------------------------- */

void **__cudaRegisterFatBinary(void *binary) { static void *handle[4]; return handle; }
void __cudaRegisterFunction(void **binary, const char *host, char *device, const char *name, int limit, void *a,
                            void *b, void *c, void *d, int *e) {
    if (strstr(name, "spin_kernel")) spin_kernel = host; /* torch.cuda._sleep */
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    next_launch.grid = grid, next_launch.block = block, next_launch.shared = shared, next_launch.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = next_launch.grid, *block = next_launch.block, *shared = next_launch.shared;
    *(void **)stream = next_launch.stream;
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u ||
        block.x * block.y * block.z > 1024)
        return fail(cudaErrorInvalidConfiguration);
    if (kernel == spin_kernel) occupy(*(long long *)arguments[0] / CLOCK_HZ);
    else fake_launch();
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    return cudaLaunchKernel((const void *)kernel, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { fake_launch(); return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024, found->numRegs = 32, found->maxDynamicSharedSizeBytes = 232448;
    found->binaryVersion = found->ptxVersion = capability(current);
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int block, size_t shared,
                                                                   unsigned flags) {
    *n = 2;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int block, size_t shared) {
    *n = 2;
    return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    static char zone[1 << 20];
    *address = zone;
    return cudaSuccess;
}

/* Errors ----------------------------------------------------------------------------------------------------- */

cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory"
         : error == cudaErrorInvalidDevice ? "invalid device ordinal"
         : error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "unknown error";
}
const char *cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

/* cuBLAS: handles and descriptors; products come from build.py, and take a kernel's time ----------------------- */

static int handle(void **out) { *out = calloc(1, 512); return 0; }
int cublasCreate_v2(void **out) { return handle(out); }
int cublasLtCreate(void **out) { return handle(out); }
int cublasLtMatmulDescCreate(void **out, int compute, int scale) { return handle(out); }
int cublasLtMatmulPreferenceCreate(void **out) { return handle(out); }
int cublasLtMatrixLayoutCreate(void **out, int type, size_t rows, size_t columns, long long stride) {
    return handle(out);
}
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e, void *p, int asked,
                                   void *results, int *found) {
    memset(results, 0, 128);
    *found = 1;
    return 0;
}
int cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *h, int *mode) { *mode = 0; return 0; }
size_t cublasLtGetVersion(void) { return 130400; }

/* libcuda, as far as Triton and torch's lazily found functions need it ----------------------------------------- */

int cuCtxGetCurrent(void **context) { *context = &current; return 0; }
int cuCtxGetDevice(int *device) { return cudaGetDevice(device); }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { return cudaDeviceGetAttribute(value, which, device); }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &current; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0, *active = 1; return 0; }
int cuDriverGetVersion(int *version) { return cudaDriverGetVersion(version); }
int cuFuncGetAttribute(int *value, int which, void *function) { *value = which == 0 ? 1024 : 0; return 0; }
/* Without a table NVRTC, which compiles torch's few kernels from source, goes on without the driver. */
int cuGetExportTable(const void **table, const void *id) { *table = NULL; return cudaErrorNotSupported; }
int cuGetErrorString(int error, const char **text) { *text = cudaGetErrorString(error); return 0; }
int cuModuleLoadData(void **module, const void *image) { return handle(module); }
int cuModuleGetFunction(void **function, void *module, const char *name) { return handle(function); }
int cuOccupancyMaxActiveClusters(int *count, void *function, void *config) { *count = 1; return 0; }
int cuPointerGetAttribute(void *value, int which, unsigned long pointer) {
    *(unsigned long *)value = pointer;
    return 0;
}
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cuLaunchKernelEx(void *config, void *function, void **arguments, void **extra) { fake_launch(); return 0; }
static int success(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *found) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function) *function = success;
    if (found) *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
