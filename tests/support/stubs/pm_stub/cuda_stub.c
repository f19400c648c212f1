/* libcuda.so.1 for tests: one device whose copies run at LLMPROF_STUB_COPY_GB_S.
 *
 * Event times are made of the bytes copied between them, so nothing depends on the machine.
 * LLMPROF_STUB_CUDA: "none" (no device), "full" (no free memory), "segv" (dies in the copy).
 */
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static double bytes;

static int mode(const char *name) {
    const char *set = getenv("LLMPROF_STUB_CUDA");
    return set && !strcmp(set, name);
}

int cuInit(unsigned flags) { (void)flags; return mode("none") ? 100 : 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuGetErrorString(int code, const char **text) {
    *text = code == 100 ? "no CUDA-capable device is detected" : "some error";
    return 0;
}
int cuDeviceGet(int *device, int index) { *device = index; return index ? 101 : 0; }
int cuDeviceGetUuid(unsigned char *uuid, int device) {
    (void)device;
    for (int i = 0; i < 16; i++) uuid[i] = (unsigned char)(i * 17);
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = &bytes; return 0; }
int cuCtxSetCurrent(void *context) { (void)context; return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *total = (size_t)80 << 30;
    *free_bytes = mode("full") ? (size_t)100 << 20 : (size_t)2 << 30;
    return 0;
}
int cuMemAlloc_v2(uint64_t *pointer, size_t size) { (void)size; *pointer = 4096; return 0; }
int cuMemsetD8_v2(uint64_t pointer, unsigned char value, size_t size) {
    (void)pointer; (void)value; (void)size;
    return 0;
}
int cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof(double));
    return 0;
}
int cuEventRecord(void *event, void *stream) { (void)stream; *(double *)event = bytes; return 0; }
int cuEventSynchronize(void *event) { (void)event; return 0; }
int cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, size_t size, void *stream) {
    (void)target; (void)source; (void)stream;
    if (mode("segv")) raise(SIGSEGV);
    bytes += 2.0 * (double)size;
    return 0;
}
int cuEventElapsedTime(float *ms, void *begin, void *end) {
    const char *rate = getenv("LLMPROF_STUB_COPY_GB_S");
    *ms = (float)((*(double *)end - *(double *)begin) / (rate ? atof(rate) : 3000.0) / 1e6);
    return 0;
}
