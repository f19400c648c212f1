/* A libcuda.so.1 for machines without a GPU: loads an injection in cuInit, as the driver does. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile int ready;
int stub_in_cuinit; /* the injection runs */

/* LLMPROF_STUB_INIT_MS: how long it takes once the injection has returned, which LLMPROF_STUB_INJECTED,
 * a file, shows by being there. */
int cuInit(unsigned flags) {
  static int begun;
  const char *wait_ms = getenv("LLMPROF_STUB_INIT_MS");
  const char *path = getenv("CUDA_INJECTION64_PATH"), *injected = getenv("LLMPROF_STUB_INJECTED");
  int (*initialize)(void) = NULL;
  void *library = NULL;
  if (flags || begun++ || !path) return ready = 1, 0;
  if ((library = dlopen(path, RTLD_NOW))) *(void **)&initialize = dlsym(library, "InitializeInjection");
  stub_in_cuinit = 1;
  if (initialize) initialize();
  else fprintf(stderr, "injection: %s\n", dlerror());
  stub_in_cuinit = 0;
  if (injected) close(creat(injected, 0600));
  if (wait_ms) usleep(1000 * (unsigned)atoi(wait_ms));
  return ready = 1, 0;
}
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = 2, ready ? 0 : 3; } /* NOT_INITIALIZED */
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) { return memset(uuid, 0xa0 + device, 16), 0; }
int cuDeviceGetPCIBusId(char *text, int room, int device) {
  return snprintf(text, (size_t)room, "0000:%02x:00.0", device + 1), 0;
}
int cuDeviceGetName(char *text, int room, int device) {
  return snprintf(text, (size_t)room, "Stub GPU %d", device), 0;
}
