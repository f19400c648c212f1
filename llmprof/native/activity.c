/* CUPTI: the order of calls, the buffers, the window.
 *
 * Traps, each met on an H100:
 *   - Without cuptiSubscribe, torch.profiler's library takes the buffer callbacks over at its first
 *     start and keeps them, without an error anywhere. A subscriber is asked first: torch.profiler
 *     then says MULTIPLE_SUBSCRIBERS and sees nothing.
 *   - cuptiActivityFlushPeriod hands over full buffers only; FlushAll(0) also part-filled ones whose
 *     records are complete.
 *   - Any first call into CUPTI, be it a subscription or a clock, makes every launch of a CUDA graph
 *     0.3 us a node longer, with no kind on: so the first one waits for the window to open.
 *   - cuptiFinalize ends the next replay of a graph that was recorded with "unspecified launch
 *     failure" where the graph was replayed with the kinds off meanwhile, within a call of the
 *     program's or outside (H100, CUDA 13.0). With the kinds on until then, and all of it within one
 *     call, 289 of 289 went well, with work in flight and two other threads that ask and wait.
 *   - Beside another thread that launches, cuptiFinalize ends the program after 1 to 8 times; with
 *     the others held at their calls' entries it ends it at once. So CUPTI leaves within a call of
 *     the only thread that launched while the window was open, and stays where there are two. */
#include "recorder.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 20, BUFFERS = 256, ZEROED_OUT_BUFFERS = 5, SYSTEM_THREAD_IDS = 1,
       MULTIPLE_SUBSCRIBERS = 39, CLOCK_TRIES = 16, SETTLE_S = 2,
       DRIVER_API = 1, RUNTIME_API = 2, API_EXIT = 1, LEAVES_SINCE = 130000 };

static const int ACTIVITIES[] = {CONCURRENT_KERNEL, MEMCPY, MEMSET};
static const int ALL_CALLS[] = {RUNTIME, DRIVER, SYNCHRONIZATION};
#define COUNT(array) (sizeof(array) / sizeof *(array))
static void mark(const char *where);

struct cupti cupti;
static enum level level;
static int refused, started, on, leaving, stays;
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
  if (valid && spool_is_open() && !(control_wanted() & WANT_FLOOR)) {
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

/* Kernels, copies and sets together: their kinds are the only ones that were switched on and off
 * around instantiated graphs without a crash (GRAPH_TRACE by turns with them did crash). */
static void switch_all(int wanted, int within_init) {
  if (!activity_is_started() || wanted == on) return;
  if (wanted) calls_new_window();
  else mark("off");
  switch_kinds(ACTIVITIES, COUNT(ACTIVITIES), wanted);
  if (level == LEVEL_FULL) calls_switch(wanted, within_init);
  if (level == LEVEL_ALL) switch_kinds(ALL_CALLS, COUNT(ALL_CALLS), wanted);
  __atomic_store_n(&on, wanted, __ATOMIC_RELAXED);
  if (wanted) mark("on");
  else cupti.ActivityFlushAll(1);
}

static void hear_calls(int wanted) {
  cupti.EnableDomain((uint32_t)wanted, subscriber, RUNTIME_API);
  cupti.EnableDomain((uint32_t)wanted, subscriber, DRIVER_API);
}

void activity_open(enum level wanted, const char *fallback, int within_init) {
  pthread_mutex_lock(&switch_lock);
  level = wanted;
  if (leaving) leaving = 0, hear_calls(0); /* opened again before the program's next call */
  if (!started && !refused) refused = !attach(fallback);
  switch_all(1, within_init);
  pthread_mutex_unlock(&switch_lock);
}

void activity_close(void) {
  pthread_mutex_lock(&switch_lock);
  stays |= on;
  switch_all(0, 0);
  pthread_mutex_unlock(&switch_lock);
}

/* Why CUPTI is not given back; NULL: it may be. */
static const char *why_it_stays(void) {
  if (version < LEAVES_SINCE || !subscriber || !cupti.EnableDomain || !cupti.Unsubscribe ||
      !cupti.Finalize)
    return "it can leave from CUDA 13.0 on";
  if (stays) return "it has stayed before";
  if (!spool_is_open()) return "its records are not looked at any more"; /* a full disk */
  if (level == LEVEL_KERNELS) return "--trace kernels does not tell how many threads launch";
  return calls_by_several() ? "more than one thread launches" : NULL;
}

/* The window is closed, and CUPTI never leaves any more: graphs are replayed without kinds now. */
static void stay(const char *why) {
  switch_all(0, 0);
  if (!stays) write_error("CUPTI stays where the window is closed", 0, why);
  stays = 1;
}

void activity_leave(void) {
  pthread_mutex_lock(&switch_lock);
  if (on && !leaving) {
    cupti.ActivityFlushAll(0); /* to know who launches */
    const char *why = why_it_stays();
    if (why) stay(why);
    else leaving = 1, hear_calls(1);
  }
  pthread_mutex_unlock(&switch_lock);
}

static void give_back(void) {
  switch_all(0, 0);
  cupti.Unsubscribe(subscriber);
  cupti.Finalize();
  __atomic_store_n(&started, 0, __ATOMIC_RELEASE);
  subscriber = NULL;
}

/* Within the program's own calls into CUDA, and only while CUPTI is to be given back. Whoever holds
 * the lock is quick, and the next call is as good. */
static void on_call(void *data, int domain, uint32_t id, const void *facts) {
  int site, other = calls_launcher() && calls_launcher() != thread_id();
  (void)data;
  if (!facts || !__atomic_load_n(&leaving, __ATOMIC_RELAXED)) return;
  memcpy(&site, facts, sizeof site); /* the first field of CUpti_CallbackData */
  if (site != API_EXIT) return;
  if (other && !calls_launch(domain == RUNTIME_API ? RUNTIME : DRIVER, id)) return;
  if (pthread_mutex_trylock(&switch_lock)) return;
  if (leaving && on) {
    if (other) hear_calls(0), stay("more than one thread launches");
    else give_back();
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

int activity_is_leaving(void) { return __atomic_load_n(&leaving, __ATOMIC_RELAXED); }
int activity_was_refused(void) { return __atomic_load_n(&refused, __ATOMIC_RELAXED); }
void activity_retry(void) { __atomic_store_n(&refused, 0, __ATOMIC_RELAXED); }

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
  refused = started = on = leaving = stays = buffers = spares = out = 0;
  subscriber = NULL;
  completed_n = declined = bytes = callback_ns = 0;
  calls_forget();
}
