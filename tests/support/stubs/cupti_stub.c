/* A libcupti for machines without a GPU: the functions that llmprof calls, with CUPTI's threading.
 *
 * stub_launch() plays the application: it writes records into buffers that it asks the client for.
 * A full buffer, and every buffer at a flush, is handed over on a thread of the library's own, as
 * CUPTI does. Sizes follow the version, so that unknown versions can be played too. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef void (*requested_t)(uint8_t **, size_t *, size_t *);
typedef void (*completed_t)(void *, uint32_t, uint8_t *, size_t, size_t);

enum { MEMCPY = 1, MEMSET = 2, DRIVER = 4, RUNTIME = 5, KERNEL = 10, IDS = 900, GET_DEVICE = 17 };
static const char *NAMES[] = {"_Z4gemvPfS_", "_Z7softmaxPf", "_Z4copyPKfPf"};

static requested_t requested;
static completed_t completed;
static uint32_t version = 130001, register_result, enable_result, correlation, launches;
static size_t kernel_size = 216, dropped, filled, capacity;
static uint8_t calls[2][IDS]; /* driver, runtime: is the call recorded? */
static int enabled[64], changes, thread_id_type = -1, declined, subscribers;
static uint8_t *buffer;
static uint64_t (*clock_of_client)(void);
static void (*on_call)(void *, int, uint32_t, const void *);
static int hears[3], gone; /* domains; cuptiFinalize was called, and nobody subscribed since */
static volatile int in_exit, busy;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void stub_reset(uint32_t v, size_t kernel, uint32_t register_code, uint32_t enable_code) {
  version = v, kernel_size = kernel, register_result = register_code, enable_result = enable_code;
  correlation = launches = 0, dropped = changes = declined = 0, thread_id_type = -1;
  buffer = NULL, filled = capacity = 0, clock_of_client = NULL;
  memset(enabled, 0, sizeof enabled), memset(calls, 0, sizeof calls);
}
int stub_changes(void) { return changes; }
int stub_thread_id_type(void) { return thread_id_type; }
int stub_enabled(int kind) { return enabled[kind]; }
void stub_drop(size_t n) { dropped += n; }

static size_t size_of(uint32_t kind) {
  return kind == KERNEL ? kernel_size : kind == MEMCPY ? 96 : kind == MEMSET ? 88
       : kind == RUNTIME || kind == DRIVER ? 40 : 0;
}

static uint64_t now(void) {
  struct timespec t;
  if (clock_of_client) return clock_of_client();
  clock_gettime(CLOCK_REALTIME, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *hand_over(void *unused) {
  uint8_t *full = buffer;
  buffer = NULL;
  completed(NULL, 0, full, capacity, filled);
  return unused;
}

static void deliver(void) {
  pthread_t worker;
  if (!buffer) return;
  pthread_create(&worker, NULL, hand_over, NULL);
  pthread_join(worker, NULL);
}

static uint8_t *place(uint32_t kind) {
  size_t size = size_of(kind), most = 1;
  if (buffer && filled + size > capacity) deliver();
  if (!buffer) {
    filled = capacity = 0;
    requested(&buffer, &capacity, &most);
    if (!buffer || most != 0 || (uintptr_t)buffer % 8) {
      declined++, dropped++;
      return NULL;
    }
    memset(buffer, 0, capacity);
  }
  uint8_t *at = buffer + filled;
  filled += size;
  memcpy(at, &kind, 4);
  return at;
}

static uint8_t *record(uint32_t kind) { return enabled[kind] ? place(kind) : NULL; }

static void put64(uint8_t *at, uint64_t value) { memcpy(at, &value, 8); }
static void put32(uint8_t *at, uint32_t value) { memcpy(at, &value, 4); }

static void call(uint32_t kind, uint32_t id, uint64_t start) {
  uint8_t *at = calls[kind == RUNTIME][id] ? place(kind) : NULL;
  if (!at) return;
  put32(at + 4, id), put64(at + 8, start), put64(at + 16, start + 9);
  put32(at + 28, (uint32_t)syscall(SYS_gettid)), put32(at + 32, correlation);
}

/* n launches: a RUNTIME and a DRIVER record and a kernel each (where enabled), 1 µs long; and a call
 * that launches nothing. */
void stub_launch(uint32_t n) {
  pthread_mutex_lock(&lock);
  for (uint32_t i = 0; i < n; i++) {
    uint8_t *at;
    uint64_t start = now();
    correlation++;
    call(RUNTIME, 211, start), call(DRIVER, 307, start);
    if ((at = record(KERNEL))) {
      put64(at + 16, start), put64(at + 24, start + 1000), put32(at + 92, correlation);
      put32(at + 52, 3), put32(at + 56, 1), put32(at + 60, 1);
      put64(at + 104, (uint64_t)(uintptr_t)NAMES[launches++ % 3]);
    }
    correlation++, call(RUNTIME, GET_DEVICE, start);
  }
  pthread_mutex_unlock(&lock);
  for (int domain = 1; domain < 3; domain++) { /* the call's exit, of the driver's and the runtime's */
    int data[16] = {1};
    if (!hears[domain] || !on_call) continue;
    in_exit = 1;
    on_call(NULL, domain, domain == 2 ? 211 : 307, data);
    in_exit = 0;
  }
}

/* A copy of a token to the host, 1 µs long, without its call. */
void stub_copy_to_host(void) {
  pthread_mutex_lock(&lock);
  uint8_t *at = record(MEMCPY);
  if (at) {
    at[4] = 2, at[5] = 3, at[6] = 1, put64(at + 8, 8);
    put64(at + 16, now()), put64(at + 24, now() + 1000), put32(at + 44, ++correlation);
  }
  pthread_mutex_unlock(&lock);
}

/* Are there records that the client has not been given? It has done with those that it was given. */
int stub_pending(void) {
  pthread_mutex_lock(&lock);
  int pending = buffer != NULL;
  pthread_mutex_unlock(&lock);
  return pending;
}

/* A kernel whose name points nowhere. */
void stub_wild_name(void) {
  uint8_t *at = record(KERNEL);
  if (at) put64(at + 16, now()), put64(at + 24, now()), put64(at + 104, 0x10);
}

int cuptiGetVersion(uint32_t *v) {
  const char *other = getenv("LLMPROF_STUB_CUPTI"); /* with records of the same sizes */
  return *v = other ? (uint32_t)atoi(other) : version, 0;
}
int cuptiGetTimestamp(uint64_t *t) {
  if (gone) abort();
  return *t = now(), 0;
}
int cuptiSetThreadIdType(int type) { return thread_id_type = type, 0; }
int cuptiGetResultString(int code, const char **text) {
  *text = code == 39 ? "CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED" : "CUPTI_ERROR_STUB";
  return 0;
}
int cuptiGetCallbackName(int domain, uint32_t cbid, const char **name) {
  *name = domain == 2 && cbid == 211 ? "cudaLaunchKernel_v7000"
        : domain == 2 && cbid == GET_DEVICE ? "cudaGetDevice_v3020"
        : domain == 1 && cbid == 307 ? "cuLaunchKernel" : NULL;
  return *name ? 0 : 1;
}
int cuptiActivityRegisterCallbacks(requested_t r, completed_t c) {
  requested = r, completed = c;
  return (int)register_result;
}
int cuptiActivityEnable(int kind) {
  if (enable_result && kind == MEMSET) return (int)enable_result;
  if (kind == DRIVER || kind == RUNTIME) memset(calls[kind == RUNTIME], 1, IDS);
  return enabled[kind] = 1, changes++, 0;
}
int cuptiActivityDisable(int kind) {
  if (kind == DRIVER || kind == RUNTIME) memset(calls[kind == RUNTIME], 0, IDS);
  return enabled[kind] = 0, changes++, 0;
}
int cuptiActivityFlushAll(uint32_t flag) {
  if (gone) abort();
  __sync_fetch_and_add(&busy, 1);
  pthread_mutex_lock(&lock);
  deliver();
  pthread_mutex_unlock(&lock);
  __sync_fetch_and_sub(&busy, 1);
  return flag > 1;
}
/* As on an H100: with a call of CUPTI's on another thread it crashes; without a subscriber that was
 * told, or outside a call into CUDA, the program's next graph does. */
int cuptiFinalize(void) {
  if (gone || busy || !in_exit || subscribers) abort();
  memset(enabled, 0, sizeof enabled), memset(calls, 0, sizeof calls);
  clock_of_client = NULL, correlation = 0;
  return gone = 1, 0;
}
int cuptiUnsubscribe(void *handle) {
  on_call = NULL, hears[1] = hears[2] = 0;
  return handle != &subscribers || subscribers-- != 1;
}
int cuptiEnableDomain(uint32_t on, void *handle, int domain) {
  return hears[domain] = (int)on, handle != &subscribers;
}
int stub_gone(void) { return gone; }
int cuptiActivityRegisterTimestampCallback(uint64_t (*clock)(void)) {
  return clock_of_client = clock, 0;
}
int cuptiSubscribe(void **handle, void *callback, void *data) {
  const char *taken = getenv("LLMPROF_STUB_SUBSCRIBED");
  *handle = &subscribers, gone = 0;
  *(void **)&on_call = callback;
  return !callback || data || taken || subscribers++ ? 39 : 0;
}
int cuptiActivitySetAttribute(int attribute, size_t *size, void *value) {
  return attribute != 5 || *size != 1 || *(uint8_t *)value != 1;
}
/* As in CUPTI: choosing a call works within cuInit only, leaving one out at any time. A program
 * without the stub of the driver is always within. */
static int choose(uint8_t *mine, uint32_t id, uint8_t on) {
  const int *within = dlsym(RTLD_DEFAULT, "stub_in_cuinit");
  if (!id || id >= IDS) return 1;
  if (!on || !within || *within) mine[id] = on;
  return 0;
}
int cuptiActivityEnableRuntimeApi(uint32_t id, uint8_t on) { return choose(calls[1], id, on); }
int cuptiActivityEnableDriverApi(uint32_t id, uint8_t on) { return choose(calls[0], id, on); }
int cuptiActivityGetNumDroppedRecords(void *context, uint32_t stream, size_t *n) {
  if (gone) abort();
  *n = dropped, dropped = 0;
  return context || stream;
}
int cuptiActivityGetNextRecord(uint8_t *data, size_t valid, uint8_t **at) {
  uint32_t kind;
  uint8_t *next = data;
  if (*at) memcpy(&kind, *at, 4), next = *at + size_of(kind);
  if (next >= data + valid) return 12;
  memcpy(&kind, next, 4);
  if (!size_of(kind)) return 21;
  return *at = next, 0;
}
