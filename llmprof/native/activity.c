/* CUPTI: the order of calls, the buffers, the window.
 *
 * Traps, each met on an H100:
 *   - Without cuptiSubscribe, torch.profiler's library takes the buffer callbacks over at its first
 *     start and keeps them, without an error anywhere. A subscriber is asked first: torch.profiler
 *     then says MULTIPLE_SUBSCRIBERS and sees nothing.
 *   - All of the API (kinds 4 and 5) makes 18 records a kernel and an eager step 1.34 times slower
 *     than CUPTI's floor. The calls chosen below cost nothing that can be measured.
 *   - cuptiActivityFlushPeriod hands over full buffers only; FlushAll(0) also part-filled ones whose
 *     records are complete.
 *   - Any first call into CUPTI, be it a subscription or a clock, makes every launch of a CUDA graph
 *     0.3 us a node longer, with no kind on: so the first one waits for the window to open.
 *   - cuptiFinalize ends the next replay of a graph that was recorded with "unspecified launch
 *     failure", within a call of the program's or outside (H100, CUDA 13.0): the kinds had been off
 *     for some replays. With the kinds on until then, and all of it within one call, 7 processes of
 *     7 went on, with one busy thread or two (H200, CUDA 13.0). So that is the way back, and a
 *     process whose window was shut for a while is not left any more. */
#include "recorder.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 20, BUFFERS = 256, ZEROED_OUT_BUFFERS = 5, SYSTEM_THREAD_IDS = 1,
       MULTIPLE_SUBSCRIBERS = 39, CLOCK_TRIES = 16, SETTLE_S = 2,
       DRIVER_API = 1, RUNTIME_API = 2, API_EXIT = 1, LEAVES_SINCE = 130000 };

/* Launches, copies, sets, waits, allocations: what ties a kernel to a host thread and a time. */
static const uint16_t RUNTIME_CALLS[] = {13,  20,  22,  31,  41,  44,  51,  131, 137,
                                         147, 165, 211, 214, 269, 311, 312, 430, 431};
static const uint16_t DRIVER_CALLS[] = {17,  121, 126, 277, 278, 279, 306,
                                        307, 442, 477, 514, 515, 652, 653};
static const int ACTIVITIES[] = {CONCURRENT_KERNEL, MEMCPY, MEMSET};
static const int ALL_CALLS[] = {RUNTIME, DRIVER, SYNCHRONIZATION};
#define COUNT(array) (sizeof(array) / sizeof *(array))
static void mark(const char *where);

struct cupti cupti;
static enum level level;
static int tried, started, on, leaving, was_shut;
static uint32_t version;
static void *subscriber;
/* Whoever calls CUPTI from a thread of ours holds it: cuptiFinalize must not meet another call. */
static pthread_mutex_t switch_lock = PTHREAD_MUTEX_INITIALIZER;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* what follows */
static uint8_t *all[BUFFERS], *spare[BUFFERS];
static int buffers, spares, out;
static uint64_t completed_n, declined, bytes, callback_ns;

static void on_requested(uint8_t **buffer, size_t *size, size_t *most) {
  uint8_t *found = NULL;
  pthread_mutex_lock(&lock);
  if (spares) {
    found = spare[--spares];
  } else if (buffers < BUFFERS) {
    void *fresh = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (fresh != MAP_FAILED) all[buffers++] = found = fresh;
  }
  if (found) out++;
  else declined++; /* CUPTI then drops records, and counts them */
  pthread_mutex_unlock(&lock);
  *buffer = found, *size = found ? BUFFER_BYTES : 0, *most = 0;
}

/* On a thread of CUPTI's own, or on the one that flushes. */
static void on_completed(void *context, uint32_t stream, uint8_t *buffer, size_t size,
                         size_t valid) {
  uint64_t begin = monotonic_ns();
  int ours = 0;
  (void)context, (void)stream, (void)size;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < buffers && !ours; i++) ours = all[i] == buffer;
  pthread_mutex_unlock(&lock);
  if (!ours || valid > BUFFER_BYTES) return;
  if (valid && level != LEVEL_FLOOR && spool_is_open()) {
    names_of_buffer(buffer, valid);
    write_frame(FRAME_RECORDS, buffer, valid);
  }
  memset(buffer, 0, valid); /* CUPTI was promised zeros, and spares itself the clearing */
  pthread_mutex_lock(&lock);
  spare[spares++] = buffer;
  out--, completed_n++;
  bytes += valid;
  callback_ns += monotonic_ns() - begin;
  pthread_mutex_unlock(&lock);
}

/* Functions by name, `cupti` before each; the missing one, or NULL. */
static const char *bind_functions(void *library) {
  struct { const char *name; void *slot; int needed; } const functions[] = {
      {"cuptiGetVersion", &cupti.GetVersion, 1},
      {"cuptiGetTimestamp", &cupti.GetTimestamp, 1},
      {"cuptiSetThreadIdType", &cupti.SetThreadIdType, 1},
      {"cuptiActivityRegisterCallbacks", &cupti.ActivityRegisterCallbacks, 1},
      {"cuptiActivityEnable", &cupti.ActivityEnable, 1},
      {"cuptiActivityDisable", &cupti.ActivityDisable, 1},
      {"cuptiActivityFlushAll", &cupti.ActivityFlushAll, 1},
      {"cuptiActivityGetNumDroppedRecords", &cupti.ActivityGetNumDroppedRecords, 1},
      {"cuptiActivityGetNextRecord", &cupti.ActivityGetNextRecord, 1},
      {"cuptiActivitySetAttribute", &cupti.ActivitySetAttribute, 1},
      {"cuptiGetCallbackName", &cupti.GetCallbackName, 1},
      {"cuptiActivityRegisterTimestampCallback", &cupti.ActivityRegisterTimestampCallback, 0},
      {"cuptiSubscribe", &cupti.Subscribe, 0},
      {"cuptiActivityEnableRuntimeApi", &cupti.ActivityEnableRuntimeApi, 0},
      {"cuptiActivityEnableDriverApi", &cupti.ActivityEnableDriverApi, 0},
      {"cuptiEnableDomain", &cupti.EnableDomain, 0},
      {"cuptiUnsubscribe", &cupti.Unsubscribe, 0},
      {"cuptiFinalize", &cupti.Finalize, 0}};
  for (size_t i = 0; i < COUNT(functions); i++) {
    void *found = dlsym(library, functions[i].name);
    if (!found && functions[i].needed) return functions[i].name;
    memcpy(functions[i].slot, &found, sizeof found);
  }
  return NULL;
}

static void say_started(const char *library, uint32_t version, uint64_t begun) {
  text_t text = {0};
  put_text(&text, "{");
  put_string(&text, "library", library);
  put_number(&text, "cupti_version", version);
  put_number(&text, "start_took_ns", (long long)(monotonic_ns() - begun));
  put_text(&text, "}");
  write_text(FRAME_PROCESS, &text);
}

static int fail(const char *what, int code, const char *advice) {
  write_error(what, code, advice);
  return 0;
}

static void on_call(void *data, int domain, uint32_t id, const void *facts);

/* Subscribe, clock, attribute, callbacks: all before anything is enabled. `switch_lock` is held. */
static int attach(const char *fallback) {
  char found[PATH_ROOM] = "";
  uint64_t begun = monotonic_ns();
  uint8_t yes = 1;
  size_t one = 1;
  int code;
  void *library = find_cupti(fallback, found);
  if (!library)
    return fail("no libcupti", 0, "install nvidia-cuda-cupti into the program's environment");
  const char *missing = bind_functions(library);
  if (missing) return fail(missing, 0, "this libcupti is older than CUDA 12");
  if ((code = cupti.GetVersion(&version))) return fail("cuptiGetVersion", code, "");
  names_start(version);
  if (cupti.Subscribe && (code = cupti.Subscribe(&subscriber, on_call, NULL)))
    return fail("cuptiSubscribe", code,
                code == MULTIPLE_SUBSCRIBERS ? "another profiler holds CUPTI in this process" : "");
  if (!cupti.ActivityRegisterTimestampCallback ||
      (code = cupti.ActivityRegisterTimestampCallback(monotonic_ns)))
    write_error("cuptiActivityRegisterTimestampCallback", code, "times go by the marks' clocks");
  if ((code = cupti.ActivitySetAttribute(ZEROED_OUT_BUFFERS, &one, &yes)))
    write_error("ZEROED_OUT_ACTIVITY_BUFFER", code, "CUPTI clears each buffer itself");
  if ((code = cupti.ActivityRegisterCallbacks(on_requested, on_completed)))
    return fail("cuptiActivityRegisterCallbacks", code, "");
  cupti.SetThreadIdType(SYSTEM_THREAD_IDS);
  __atomic_store_n(&started, 1, __ATOMIC_RELEASE);
  say_started(found, version, begun);
  return 1;
}

int activity_is_started(void) { return __atomic_load_n(&started, __ATOMIC_ACQUIRE); }
int activity_is_on(void) { return __atomic_load_n(&on, __ATOMIC_RELAXED); }
int activity_buffers_out(void) { return __atomic_load_n(&out, __ATOMIC_RELAXED); }
uint64_t activity_completed(void) { return __atomic_load_n(&completed_n, __ATOMIC_RELAXED); }

static void switch_kinds(const int *kinds, size_t count, int wanted) {
  for (size_t i = 0; i < count; i++) {
    int code = wanted ? cupti.ActivityEnable(kinds[i]) : cupti.ActivityDisable(kinds[i]);
    if (code && wanted) write_error("cuptiActivityEnable", kinds[i] * 10000L + code, "");
  }
}

static void switch_calls(int wanted) {
  int code, refused = 0;
  if (!cupti.ActivityEnableRuntimeApi || !cupti.ActivityEnableDriverApi) {
    if (wanted)
      write_error("cuptiActivityEnableRuntimeApi", 0,
                  "this CUPTI (before CUDA 12.5) cannot choose API calls: kernels without calls");
    return;
  }
  for (size_t i = 0; i < COUNT(RUNTIME_CALLS); i++)
    if ((code = cupti.ActivityEnableRuntimeApi(RUNTIME_CALLS[i], (uint8_t)wanted))) refused++;
  for (size_t i = 0; i < COUNT(DRIVER_CALLS); i++)
    if ((code = cupti.ActivityEnableDriverApi(DRIVER_CALLS[i], (uint8_t)wanted))) refused++;
  if (refused && wanted) write_error("API calls that this CUPTI does not know", refused, "");
}

/* Kernels, copies and sets together: their kinds are the only ones that were switched on and off
 * around instantiated graphs without a crash (GRAPH_TRACE by turns with them did crash). */
static void switch_all(int wanted) {
  if (!activity_is_started() || wanted == on) return;
  if (!wanted) mark("off");
  switch_kinds(ACTIVITIES, COUNT(ACTIVITIES), wanted);
  if (level == LEVEL_FULL) switch_calls(wanted);
  if (level == LEVEL_ALL) switch_kinds(ALL_CALLS, COUNT(ALL_CALLS), wanted);
  __atomic_store_n(&on, wanted, __ATOMIC_RELAXED);
  if (wanted) mark("on");
  else cupti.ActivityFlushAll(1);
}

void activity_open(enum level wanted, const char *fallback) {
  pthread_mutex_lock(&switch_lock);
  level = wanted;
  if (!tried) tried = 1, attach(fallback);
  switch_all(1);
  pthread_mutex_unlock(&switch_lock);
}

void activity_close(void) {
  pthread_mutex_lock(&switch_lock);
  was_shut |= on;
  switch_all(0);
  pthread_mutex_unlock(&switch_lock);
}

/* Before CUDA 12.6 graphs crash (torch.profiler's authors), from 13.0 on it was seen to work. */
static int may_leave(void) {
  return version >= LEAVES_SINCE && !was_shut && subscriber && cupti.EnableDomain &&
         cupti.Unsubscribe && cupti.Finalize;
}

static void hear_calls(int wanted) {
  cupti.EnableDomain((uint32_t)wanted, subscriber, RUNTIME_API);
  cupti.EnableDomain((uint32_t)wanted, subscriber, DRIVER_API);
}

void activity_leave(void) {
  pthread_mutex_lock(&switch_lock);
  if (on && !leaving) {
    if (may_leave()) {
      leaving = 1, hear_calls(1);
    } else {
      switch_all(0);
      write_error("--detach", 0, was_shut ? "the window was shut before, so CUPTI stays"
                                                : "CUPTI before CUDA 13.0 stays where it is");
    }
  }
  pthread_mutex_unlock(&switch_lock);
}

/* Within the program's own calls into CUDA, and only while CUPTI is to be given back. Whoever holds
 * the lock is quick, and the next call is as good. */
static void on_call(void *data, int domain, uint32_t id, const void *facts) {
  int site;
  (void)data, (void)domain, (void)id;
  if (!facts || !__atomic_load_n(&leaving, __ATOMIC_RELAXED)) return;
  memcpy(&site, facts, sizeof site); /* the first field of CUpti_CallbackData */
  if (site != API_EXIT || pthread_mutex_trylock(&switch_lock)) return;
  if (leaving && on) {
    switch_all(0);
    cupti.Unsubscribe(subscriber);
    cupti.Finalize();
    __atomic_store_n(&started, 0, __ATOMIC_RELEASE);
    subscriber = NULL;
  }
  leaving = 0;
  pthread_mutex_unlock(&switch_lock);
}

/* For threads of ours; 0 where CUPTI is not there, or the helper does not come back from it. */
static int enter(void) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += SETTLE_S;
  if (pthread_mutex_timedlock(&switch_lock, &until)) return 0;
  if (activity_is_started()) return 1;
  pthread_mutex_unlock(&switch_lock);
  return 0;
}

/* At the program's end: the helper may be in the middle of attaching. Nothing leaves any more. */
void activity_settle(void) {
  if (!enter()) return;
  leaving = 0;
  pthread_mutex_unlock(&switch_lock);
}

int activity_was_tried(void) { return __atomic_load_n(&tried, __ATOMIC_RELAXED); }

void activity_flush(int forced) {
  if (!enter()) return;
  cupti.ActivityFlushAll(forced ? 1 : 0);
  pthread_mutex_unlock(&switch_lock);
}

void activity_mark(const char *where) {
  int entered = enter();
  mark(where);
  if (entered) pthread_mutex_unlock(&switch_lock);
}

/* Three clocks at one moment, the tightest of a few readings; counters since the start.
 * `switch_lock` is held where CUPTI is there. */
static void mark(const char *where) {
  uint64_t error = UINT64_MAX, middle = 0, wall = 0, device = 0;
  size_t dropped = 0;
  text_t text = {0};
  for (int i = 0; i < CLOCK_TRIES; i++) {
    uint64_t before = monotonic_ns(), then = 0;
    if (activity_is_started()) cupti.GetTimestamp(&then);
    uint64_t now = wall_ns(), after = monotonic_ns();
    if (after - before < error)
      error = after - before, middle = before + error / 2, wall = now, device = then;
  }
  if (activity_is_started()) cupti.ActivityGetNumDroppedRecords(NULL, 0, &dropped);
  put_text(&text, "{");
  put_number(&text, "round", 0);
  put_string(&text, "where", where);
  put_number(&text, "monotonic_ns", (long long)middle);
  put_number(&text, "wall_ns", (long long)wall);
  put_number(&text, "cupti_ns", (long long)device);
  put_number(&text, "error_ns", (long long)(error / 2 + 1));
  put_number(&text, "dropped", (long long)dropped);
  pthread_mutex_lock(&lock);
  put_number(&text, "buffers", (long long)completed_n);
  put_number(&text, "bytes", (long long)bytes);
  put_number(&text, "declined", (long long)declined);
  put_number(&text, "callback_ns", (long long)callback_ns);
  pthread_mutex_unlock(&lock);
  put_text(&text, "}");
  write_text(FRAME_MARK, &text);
}

/* In a forked child CUDA and CUPTI are the parent's. Buffers stay mapped: nobody knows who holds
 * them. */
void activity_forget(void) {
  pthread_mutex_init(&lock, NULL);
  pthread_mutex_init(&switch_lock, NULL);
  tried = started = on = leaving = was_shut = buffers = spares = out = 0;
  subscriber = NULL;
  completed_n = declined = bytes = callback_ns = 0;
}
