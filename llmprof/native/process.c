/* The life of a process: entry points, helper thread, fork, exit, SIGTERM. */
#include "recorder.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TICK_MS = 20, IDLE_TICK_MS = 100, MARK_MS = 1000, LOOK_MS = 1000, TERM_WAIT_MS = 200 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int configured, hooked, helper_runs, devices_told;
static volatile int injected; /* by the driver: this process uses CUDA */
static volatile int stopping;
static volatile sig_atomic_t term_asked, term_done;
static pid_t owner; /* the process that the spool belongs to */
static char folder[PATH_ROOM - 64], fallback[PATH_ROOM];
static enum level level = LEVEL_FULL;
static __thread uint32_t own_tid;

static uint64_t clock_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
uint64_t monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
uint64_t wall_ns(void) { return clock_ns(CLOCK_REALTIME); }
uint32_t thread_id(void) {
  if (!own_tid) own_tid = (uint32_t)syscall(SYS_gettid);
  return own_tid;
}

static void sleep_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&t, NULL);
}

/* secure_getenv: a setuid program must not write where its caller says. */
static void configure(void) {
  static const char *const names[] = {"steps", "kernels", "full", "all"};
  const char *value;
  if (configured) return;
  configured = 1;
  if ((value = secure_getenv("LLMPROF_RECORD_DIR")) && strlen(value) < sizeof folder)
    strcpy(folder, value);
  if ((value = secure_getenv("LLMPROF_RECORD_CUPTI")) && strlen(value) < sizeof fallback)
    strcpy(fallback, value);
  if ((value = secure_getenv("LLMPROF_RECORD_TRACE")))
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
      if (!strcmp(value, names[i])) level = (enum level)i;
  if (folder[0]) control_map(folder);
}

static void put_file(text_t *text, const char *key, const char *path) {
  char content[8192];
  int file = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = file < 0 ? 0 : read(file, content, sizeof content);
  if (file >= 0) close(file);
  put_key(text, key);
  put_quoted(text, content, length > 0 ? (size_t)length : 0);
}

static void say_process(uint64_t born) {
  static const char *const variables[] = {"RANK", "LOCAL_RANK", "WORLD_SIZE",
                                          "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"};
  text_t text = {0};
  char exe[PATH_ROOM];
  ssize_t length = readlink("/proc/self/exe", exe, sizeof exe);
  put_text(&text, "{");
  put_number(&text, "pid", owner);
  put_number(&text, "ppid", getppid());
  put_number(&text, "monotonic_ns", (long long)born);
  put_number(&text, "wall_ns", (long long)wall_ns());
  put_key(&text, "exe");
  put_quoted(&text, exe, length > 0 ? (size_t)length : 0);
  put_file(&text, "cmdline", "/proc/self/cmdline");
  put_file(&text, "comm", "/proc/self/comm");
  for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
    const char *value = secure_getenv(variables[i]);
    if (value) put_string(&text, variables[i], value);
  }
  put_text(&text, "}");
  write_text(FRAME_PROCESS, &text);
}

static void say_cuda(void) {
  text_t text = {0};
  put_text(&text, "{");
  put_number(&text, "cuda", 1);
  put_text(&text, "}");
  write_text(FRAME_PROCESS, &text);
}

/* The window opens behind cuInit, which must have ended: until then the driver says so (3). */
static int may_attach(void) {
  int (*count)(int *) = NULL, n = 0;
  if (!injected || activity_was_refused()) return 0;
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (!driver) return 0;
  *(void **)&count = dlsym(driver, "cuDeviceGetCount");
  int ready = count && !count(&n);
  dlclose(driver);
  return ready;
}

/* CUPTI's deviceId is an ordinal of this process: say once which GPU each one is. Not before there
 * was work: until then this process may still be inside cuInit. */
static void say_devices(void) {
  int (*count)(int *) = NULL, (*uuid)(uint8_t *, int) = NULL;
  int (*bus)(char *, int, int) = NULL, (*name)(char *, int, int) = NULL;
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  text_t text = {0};
  int n = 0;
  if (devices_told || !driver) return;
  *(void **)&count = dlsym(driver, "cuDeviceGetCount");
  *(void **)&uuid = dlsym(driver, "cuDeviceGetUuid_v2");
  *(void **)&bus = dlsym(driver, "cuDeviceGetPCIBusId");
  *(void **)&name = dlsym(driver, "cuDeviceGetName");
  if (!count || !uuid || !bus || !name || count(&n)) return;
  devices_told = 1;
  put_text(&text, "{\"devices\":[");
  for (int i = 0; i < n; i++) {
    uint8_t id[16] = {0};
    char hex[33] = "", place[32] = "", model[128] = "";
    uuid(id, i), bus(place, sizeof place, i), name(model, sizeof model, i);
    for (int k = 0; k < 16; k++) snprintf(hex + 2 * k, 3, "%02x", id[k]);
    put_text(&text, i ? ",{" : "{");
    put_number(&text, "ordinal", i);
    put_string(&text, "uuid", hex);
    put_string(&text, "pci_bus_id", place);
    put_string(&text, "name", model);
    put_text(&text, "}");
  }
  put_text(&text, "]}");
  write_text(FRAME_DEVICES, &text);
}

static void close_window(uint32_t told) {
  if (told & WANT_LEAVE) activity_leave();
  else activity_close();
}

/* On or off as llmprof wants it, in a process that has loaded CUDA. */
static void follow_window(void) {
  uint32_t told = control_wanted();
  if (told & WANT_ACTIVITY) {
    if (activity_is_leaving() || (!activity_is_on() && (activity_is_started() || may_attach())))
      activity_open(level, fallback, 0);
  } else if (activity_is_on()) {
    close_window(told);
  } else {
    activity_retry();
  }
}

static void *help(void *unused) {
  uint64_t marked = monotonic_ns(), looked = marked;
  int idle = 0;
  while (!stopping) {
    /* 500 idle processes shall not wake a machine up; 20 ms is what a kill -9 then loses. */
    sleep_ms(idle ? IDLE_TICK_MS : TICK_MS);
    if (stopping) break;
    if (term_asked && !term_done) {
      ranges_flush();
      activity_flush(1);
      activity_mark("end");
      term_done = 1;
    }
    if (monotonic_ns() - looked >= LOOK_MS * 1000000ull) {
      looked = monotonic_ns();
      if (control_is_orphan(folder)) {
        close_window(control_wanted());
        spool_abandon(folder);
        break;
      }
    }
    follow_window();
    ranges_flush();
    idle = !activity_is_on() || !activity_buffers_out();
    if (!idle) activity_flush(0);
    if (activity_completed()) say_devices();
    if (activity_is_on() && monotonic_ns() - marked >= MARK_MS * 1000000ull) {
      activity_mark("tick");
      names_recheck();
      marked = monotonic_ns();
    }
  }
  return unused;
}

/* With all signals blocked: they are for the program's own threads. `lock` is held. */
static void start_helper(void) {
  sigset_t every, before;
  pthread_t thread;
  if (helper_runs) return;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  if (!pthread_create(&thread, NULL, help, NULL)) {
    helper_runs = 1;
    pthread_setname_np(thread, "llmprof");
    pthread_detach(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void finish(void) {
  if (owner != getpid() || !spool_is_open() || stopping) return;
  stopping = 1;
  activity_settle();
  ranges_flush();
  activity_flush(1);
  activity_mark("end");
  if (activity_completed()) say_devices();
  spool_close();
}

/* Only where the program left SIGTERM alone: the helper writes what there is, then the program ends
 * as it would have. Loses 0.04 ms of trace instead of 55. */
static void on_term(int number) {
  int saved = errno;
  if (owner == getpid()) {
    term_asked = 1;
    for (int waited = 0; waited < TERM_WAIT_MS && !term_done; waited += 5) sleep_ms(5);
  }
  signal(number, SIG_DFL);
  raise(number);
  errno = saved;
}

static void in_child(void) {
  pthread_mutex_init(&lock, NULL);
  spool_forget(), names_forget(), activity_forget(), ranges_forget();
  owner = 0, own_tid = 0;
  helper_runs = devices_told = injected = 0;
  stopping = 0;
  term_asked = term_done = 0;
}

/* Once a process: `lock` is held. */
static void hook(void) {
  struct sigaction term;
  if (hooked) return;
  hooked = 1;
  pthread_atfork(NULL, NULL, in_child);
  atexit(finish);
  if (!sigaction(SIGTERM, NULL, &term) && !(term.sa_flags & SA_SIGINFO) &&
      term.sa_handler == SIG_DFL)
    signal(SIGTERM, on_term);
}

static int begin_locked(void) {
  char path[PATH_ROOM];
  configure();
  if (spool_is_open()) return 1;
  if (!folder[0] || owner == getpid()) return 0; /* closed once: for good */
  uint64_t born = monotonic_ns();
  owner = getpid();
  /* The time makes the name unique over exec and the reuse of process ids. */
  snprintf(path, sizeof path, "%s/%d-%llu.spool", folder, (int)owner, (unsigned long long)born);
  if (!spool_open(path)) return 0;
  say_process(born);
  hook();
  start_helper();
  return 1;
}

int process_begin(void) {
  pthread_mutex_lock(&lock);
  int begun = begin_locked();
  pthread_mutex_unlock(&lock);
  return begun;
}

/* The driver calls this inside cuInit, in every process; whatever is returned, CUDA goes on. */
EXPORT int InitializeInjection(void);
EXPORT int InitializeInjection(void) {
  pthread_mutex_lock(&lock);
  if (begin_locked() && level != LEVEL_STEPS && !injected) {
    say_cuda();
    if (control_wanted() & WANT_ACTIVITY) activity_open(level, fallback, 1);
    injected = 1;
  }
  pthread_mutex_unlock(&lock);
  return 1;
}

/* NVTX calls this at its first use, once a library that has NVTX in it. */
EXPORT int InitializeInjectionNvtx2(const void *(*export_table)(uint32_t));
EXPORT int InitializeInjectionNvtx2(const void *(*export_table)(uint32_t)) {
  return process_begin() && ranges_attach(export_table);
}
