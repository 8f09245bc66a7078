// What the stand-ins for CUDA's libraries have of their own (stub_cuda.py): calls that have to give something.
// All others return 0, success. Sizes are those of CUDA 13.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef int Status;
typedef void *Handle;
typedef struct { unsigned x, y, z; } Dim3;

static FILE *log_file(void) {
    static FILE *file;
    if (!file) file = fopen(getenv("STUB_CUDA_LOG"), "a");
    return file;
}
void stub_write(const char *call, const char *detail) {
    fprintf(log_file(), "%s\t%s\n", call, detail);
    fflush(log_file());
}
static void write_size(const char *call, int kind, size_t num_bytes) {
    char detail[64];
    snprintf(detail, sizeof detail, "%d %zu", kind, num_bytes);
    stub_write(call, detail);
}
static char room[64];  // what handles point to
static Status give(Handle *handle) { *handle = room; return 0; }

// Device
Status cudaGetDevice(int *device) { *device = 0; return 0; }
Status cudaGetDeviceCount(int *count) { *count = 1; return 0; }
Status cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
Status cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
Status cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = 1ul << 37; return 0; }
Status cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 16 ? 132 : 1024;
    if (attribute == 97) *value = 227 << 10;  // shared memory of a block
    return 0;
}
Status cudaGetDeviceProperties(char *properties, int device) {
    memset(properties, 0, PROPERTIES_SIZE);
    strcpy(properties, "stub");
#define SET(type, offset, value) *(type *)(properties + (offset)) = (value)
    SET(size_t, TOTAL_GLOBAL_MEM, 1ul << 37);
    SET(size_t, SHARED_MEM_PER_BLOCK, 48 << 10);
    SET(int, REGS_PER_BLOCK, 65536);
    SET(int, WARP_SIZE, 32);
    SET(int, MAX_THREADS_PER_BLOCK, 1024);
    for (int i = 0; i < 3; i++) {
        SET(int, MAX_THREADS_DIM + 4 * i, i == 2 ? 64 : 1024);
        SET(int, MAX_GRID_SIZE + 4 * i, i ? 65535 : 2147483647);
    }
    SET(int, MAJOR, 9);
    SET(int, MULTI_PROCESSOR_COUNT, 132);
    SET(int, MAX_THREADS_PER_MULTI_PROCESSOR, 2048);
    SET(size_t, SHARED_MEM_PER_MULTIPROCESSOR, 228 << 10);
    SET(size_t, SHARED_MEM_PER_BLOCK_OPTIN, 227 << 10);
    SET(int, COOPERATIVE_LAUNCH, 1);
    return 0;
}
const char *cudaGetErrorName(Status status) { return "stub"; }
const char *cudaGetErrorString(Status status) { return "stub"; }
Status cudaFuncGetAttributes(void *attributes, const void *function) { memset(attributes, 0, 144); return 0; }
Status cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *num, const void *f, int b, size_t s,
                                                              unsigned flags) { *num = 4; return 0; }
Status cudaGetDriverEntryPointByVersion(const char *n, Handle *f, unsigned v, unsigned long u, int *found) {
    *f = 0; *found = 1; return 0;
}

// Memory
static Status allocate(Handle *address, size_t num_bytes) {
    *address = aligned_alloc(4096, (num_bytes + 8191) / 4096 * 4096);
    return 0;
}
Status cudaMalloc(Handle *address, size_t num_bytes) {
    write_size("cudaMalloc", 0, num_bytes);
    return allocate(address, num_bytes);
}
Status cudaMallocHost(Handle *address, size_t num_bytes) { return allocate(address, num_bytes); }
Status cudaHostAlloc(Handle *address, size_t num_bytes, unsigned f) { return allocate(address, num_bytes); }
Status cudaMallocFromPoolAsync(Handle *address, size_t num_bytes, Handle pool, Handle stream) {
    return allocate(address, num_bytes);
}
Status cudaPointerGetAttributes(void *attributes, const void *p) { memset(attributes, 0, 64); return 0; }
Status cudaMemcpy(void *target, const void *source, size_t num_bytes, int kind) {
    memcpy(target, source, num_bytes);
    write_size("cudaMemcpy", kind, num_bytes);
    return 0;
}
Status cudaMemcpyAsync(void *target, const void *source, size_t num_bytes, int kind, Handle stream) {
    memcpy(target, source, num_bytes);
    write_size("cudaMemcpyAsync", kind, num_bytes);
    return 0;
}
Status cudaMemcpyFromSymbol(void *target, const void *symbol, size_t num_bytes, size_t offset, int kind) {
    memset(target, 0, num_bytes);
    return 0;
}
Status cudaMemset(void *target, int value, size_t num_bytes) { memset(target, value, num_bytes); return 0; }
Status cudaMemsetAsync(void *target, int value, size_t num_bytes, Handle stream) {
    memset(target, value, num_bytes);
    write_size("cudaMemsetAsync", 0, num_bytes);
    return 0;
}

// Streams, events, graphs
Status cudaStreamCreate(Handle *stream) { return give(stream); }
Status cudaStreamCreateWithFlags(Handle *stream, unsigned flags) { return give(stream); }
Status cudaEventCreate(Handle *event) { return give(event); }
Status cudaEventCreateWithFlags(Handle *event, unsigned flags) { return give(event); }
Status cudaEventElapsedTime(float *ms, Handle start, Handle stop) { *ms = 1; return 0; }
static int is_capturing;
Status cudaStreamIsCapturing(Handle stream, int *status) { *status = is_capturing; return 0; }
Status cudaStreamBeginCapture(Handle stream, int mode) {
    is_capturing = 1;
    stub_write("cudaStreamBeginCapture", "");
    return 0;
}
Status cudaStreamEndCapture(Handle stream, Handle *graph) {
    is_capturing = 0;
    stub_write("cudaStreamEndCapture", "");
    return give(graph);
}
Status cudaGraphGetNodes(Handle graph, Handle *nodes, size_t *number) { *number = 1; return 0; }
Status cudaGraphNodeGetType(Handle node, int *type) { *type = 0; return 0; }
Status cudaGraphInstantiate(Handle *executable, Handle graph, unsigned long f) { return give(executable); }
Status cudaGraphLaunch(Handle executable, Handle stream) { stub_write("cudaGraphLaunch", ""); return 0; }
Status cudaStreamSynchronize(Handle stream) { stub_write("cudaStreamSynchronize", ""); return 0; }
Status cudaDeviceSynchronize(void) { stub_write("cudaDeviceSynchronize", ""); return 0; }
Status cudaEventSynchronize(Handle event) { stub_write("cudaEventSynchronize", ""); return 0; }
Status cudaLaunchHostFunc(Handle stream, void (*function)(void *), void *argument) {
    stub_write("cudaLaunchHostFunc", "");
    function(argument);
    return 0;
}
Status cudaMemPoolCreate(Handle *pool, const void *properties) { return give(pool); }

// Kernels, by the names under which they were registered
static struct Kernel { const void *symbol; const char *name; } *kernels;
static size_t num_kernels;
Handle *__cudaRegisterFatBinary(void *binary) { static Handle handle; return &handle; }
void __cudaRegisterFunction(Handle *binary, const char *symbol, char *function, const char *name, int limit,
                            void *a, void *b, void *c, void *d, int *e) {
    if (num_kernels % 1024 == 0) kernels = realloc(kernels, (num_kernels + 1024) * sizeof *kernels);
    kernels[num_kernels++] = (struct Kernel){symbol, name};
}
static Status launch(const void *symbol) {
    for (size_t i = 0; i < num_kernels; i++)
        if (kernels[i].symbol == symbol) { stub_write("kernel", kernels[i].name); return 0; }
    stub_write("kernel", "?");
    return 0;
}
Status __cudaPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *shared, void *stream) {
    *grid = *block = (Dim3){1, 1, 1};
    *shared = 0;
    *(Handle *)stream = 0;
    return 0;
}
Status __cudaGetKernel(Handle *kernel, const void *symbol) { *kernel = (Handle)symbol; return 0; }
Status __cudaLaunchKernel(Handle kernel, Dim3 grid, Dim3 block, void **arguments, size_t n, Handle stream) {
    return launch(kernel);
}
Status cudaLaunchKernel(const void *symbol, Dim3 grid, Dim3 block, void **arguments, size_t n, Handle s) {
    return launch(symbol);
}
Status cudaLaunchCooperativeKernel(const void *symbol, Dim3 g, Dim3 b, void **arguments, size_t n, Handle s) {
    return launch(symbol);
}
Status cudaLaunchKernelExC(const void *config, const void *symbol, void **a) { return launch(symbol); }

// cuBLAS
Status cublasCreate_v2(Handle *handle) { return give(handle); }
Status cublasLtCreate(Handle *handle) { return give(handle); }
Status cublasGetMathMode(Handle handle, int *mode) { *mode = 0; return 0; }
const char *cublasGetStatusName(Status status) { return "stub"; }
const char *cublasGetStatusString(Status status) { return "stub"; }

// cuDNN, as far as attention calls it: of whatever is asked for there is one, and every size is 0
static Status note(const char *call) { stub_write(call, ""); return 0; }
size_t cudnnGetVersion(void) { return 91600; }
const char *cudnnGetErrorString(Status status) { return "stub"; }
void cudnnGetLastErrorString(char *text, size_t size) { *text = 0; }
Status cudnnCreate(Handle *handle) { give(handle); return note(__func__); }
Status cudnnDestroy(Handle handle) { return note(__func__); }
Status cudnnSetStream(Handle handle, Handle stream) { return note(__func__); }
Status cudnnGetStream(Handle handle, Handle *stream) { give(stream); return note(__func__); }
Status cudnnBackendCreateDescriptor(int type, Handle *made) { give(made); return note(__func__); }
Status cudnnBackendDestroyDescriptor(Handle descriptor) { return note(__func__); }
Status cudnnBackendSetAttribute(Handle descriptor, int name, int type, long count, const void *values) {
    return note(__func__);
}
Status cudnnBackendGetAttribute(Handle descriptor, int name, int type, long size, long *count, void *values) {
    enum { INT64 = 3, KNOB_TYPE = 9, DESCRIPTOR = 15, INT32 = 23 };
    if (count) *count = type == DESCRIPTOR;  // which the caller has made
    if (values && size && (type == INT64 || type == INT32 || type == KNOB_TYPE))
        memset(values, 0, type == INT64 ? 8 : 4);
    return note(__func__);
}
Status cudnnBackendFinalize(Handle descriptor) { return note(__func__); }
Status cudnnBackendExecute(Handle handle, Handle plan, Handle arguments) { return note(__func__); }

// Driver
Status cuInit(unsigned flags) { return 0; }
Status cuDeviceGetCount(int *count) { *count = 1; return 0; }
Status cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Status cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    return cudaDeviceGetAttribute(value, attribute, device);
}
Status cuModuleLoadData(Handle *module, const char *code) {
    stub_write("cuModuleLoadData", code);
    return give(module);
}
Status cuModuleUnload(Handle module) { stub_write("cuModuleUnload", ""); return 0; }
Status cuModuleGetFunction(Handle *function, Handle module, const char *name) {
    stub_write("cuModuleGetFunction", name);
    return give(function);
}
typedef struct { int id, pad; unsigned cluster[3], rest[13]; } Attribute;
typedef struct {
    Dim3 grid, block;
    unsigned shared_bytes;
    Handle stream;
    Attribute *attributes;
    unsigned num_attributes;
} Config;
Status cuLaunchKernelEx(const Config *config, Handle function, Handle *arguments, Handle *extra) {
    char detail[99];
    int has_cluster = config->num_attributes && config->attributes->id == 4;
    unsigned cluster = has_cluster ? config->attributes->cluster[0] : 1;
    snprintf(detail, sizeof detail, "%u %u of %u, clusters of %u, %u bytes", config->grid.x, config->grid.y,
             config->block.x, cluster, config->shared_bytes);
    stub_write("cuLaunchKernelEx", detail);
    return 0;
}
Status cuOccupancyMaxActiveClusters(int *number, Handle function, const Config *config) {
    *number = 132 / config->attributes->cluster[0];
    return 0;
}
Status cuFuncSetAttribute(Handle function, int attribute, int value) { return 0; }
Status cuGetErrorName(Status status, const char **name) { *name = "stub"; return 0; }

// What hgt_infer calls of the runtime and ONNX Runtime does not
Status cudaMemcpy2DAsync(char *target, size_t step, const char *source, size_t pitch, size_t width,
                         size_t height, int kind, Handle stream) {
    for (size_t row = 0; row < height; row++) memcpy(target + row * step, source + row * pitch, width);
    write_size("cudaMemcpy2DAsync", kind, width * height);
    return 0;
}
Status cudaMemcpy3DAsync(const void *p, Handle stream) { stub_write("cudaMemcpy3DAsync", ""); return 0; }
Status cudaStreamDestroy(Handle stream) { return 0; }
Status cudaFree(Handle address) { stub_write("cudaFree", ""); free(address); return 0; }
Status cudaFreeHost(Handle address) { free(address); return 0; }

// NVRTC, of a version that never was: its machine code is the options and the size of the source
static char program[4096];
Status nvrtcVersion(int *major, int *minor) { *major = *minor = 0; return 0; }
Status nvrtcCreateProgram(Handle *handle, const char *source, const char *name, int n, Handle *h, Handle *i) {
    snprintf(program, sizeof program, "%s %zu", name, strlen(source));
    return give(handle);
}
Status nvrtcCompileProgram(Handle handle, int num_options, const char **options) {
    stub_write("nvrtcCompileProgram", "");
    // The real one does not look beside itself either.
    if (!dlopen("libnvrtc-builtins.so.0.0", RTLD_NOW)) return 7;
    for (int i = 0; i < num_options; i++) {
        strcat(program, " ");
        strcat(program, options[i]);
    }
    return getenv("STUB_NVRTC_FAILS") ? 6 : 0;
}
Status nvrtcGetCUBINSize(Handle handle, size_t *size) { *size = strlen(program) + 1; return 0; }
Status nvrtcGetCUBIN(Handle handle, char *code) { strcpy(code, program); return 0; }
Status nvrtcGetProgramLogSize(Handle handle, size_t *size) { *size = 9; return 0; }
Status nvrtcGetProgramLog(Handle handle, char *log) { strcpy(log, "line 3: ?"); return 0; }
Status nvrtcDestroyProgram(Handle *handle) { return 0; }
