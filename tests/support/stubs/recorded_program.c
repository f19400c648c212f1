/* A "CUDA program" over the stub libraries: steps of NVTX range, launches, a pause.
 *
 *   recorded_program END [STEPS] [LAUNCHES] [PAUSE_US] [PROGRAM ARGUMENTS…]
 *
 * After the last step it ends by END: return, exit (7, 8 where CUPTI was given back), _exit, term, abort, segv, kill, exec, fork (a
 * child in the middle that does nothing), fork-cuda (a child that uses CUDA, the parent did not),
 * STUB_THREADS: another thread launches one kernel each ms meanwhile.
 * wait (until a signal; the file STUB_READY appears when all records are handed over), nocuda (no cuInit). It prints `T` and CLOCK_MONOTONIC in ns after each step
 * on descriptor 3 where that is open. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int cuInit(unsigned);
void stub_launch(uint32_t);
int stub_pending(void);
int stub_gone(void);

/* What nvToolsExt.h does at the first call of a program, with room for the functions used here. */
typedef void (*any_function)(void);
static int (*push)(const char *);
static int (*pop)(void);
static void (*mark)(const char *);
static any_function *core[16] = {[2] = (any_function *)&mark, [9] = (any_function *)&push,
                                 [11] = (any_function *)&pop};
static int get_table(int module, any_function ***table, unsigned *size) {
  *table = core, *size = 16;
  return module == 1;
}
static const struct { size_t size; int (*get)(int, any_function ***, unsigned *); } callbacks = {
    sizeof callbacks, get_table};
static const void *export_table(uint32_t number) { return number == 1 ? &callbacks : NULL; }

static void nvtx(void) {
  const char *path = getenv("NVTX_INJECTION64_PATH");
  void *library = path ? dlopen(path, RTLD_LAZY) : NULL;
  int (*attach)(const void *(*)(uint32_t)) = NULL;
  if (library) *(void **)&attach = dlsym(library, "InitializeInjectionNvtx2");
  if (attach) attach(export_table);
}

static void steps(int count, uint32_t launches, unsigned pause_us) {
  char text[64];
  struct timespec t;
  for (int i = 0; i < count; i++) {
    snprintf(text, sizeof text, "decode %d", i);
    if (push) push(text);
    stub_launch(launches);
    if (pause_us) usleep(pause_us);
    if (pop) pop();
    clock_gettime(CLOCK_MONOTONIC, &t);
    dprintf(3, "T %lld\n", (long long)t.tv_sec * 1000000000 + t.tv_nsec);
  }
}

static void *launch_beside(void *unused) {
  for (;;) stub_launch(1), usleep(1000);
  return unused;
}

int main(int argc, char **argv) {
  const char *end = argc > 1 ? argv[1] : "return";
  int count = argc > 2 ? atoi(argv[2]) : 100;
  uint32_t launches = argc > 3 ? (uint32_t)atoi(argv[3]) : 10;
  unsigned pause_us = argc > 4 ? (unsigned)atoi(argv[4]) : 1000;
  nvtx();
  if (!strcmp(end, "fork-cuda")) {
    usleep(200000); /* ASan deadlocks in a child that is forked while another thread starts */
    if (fork()) return wait(NULL) < 0;
    end = "exit";
  }
  if (strcmp(end, "nocuda")) cuInit(0);
  pthread_t beside;
  if (getenv("STUB_THREADS")) pthread_create(&beside, NULL, launch_beside, NULL);
  steps(count, launches, pause_us);
  if (!strcmp(end, "fork")) {
    if (!fork()) {
      if (push) push("in the child"), pop();
      _exit(0);
    }
    wait(NULL);
    steps(count, launches, pause_us);
  }
  if (!strcmp(end, "exit")) exit(stub_gone() ? 8 : 7);
  if (!strcmp(end, "_exit")) _exit(3);
  if (!strcmp(end, "term")) raise(SIGTERM);
  if (!strcmp(end, "abort")) abort();
  if (!strcmp(end, "segv")) raise(SIGSEGV);
  if (!strcmp(end, "kill")) raise(SIGKILL);
  if (!strcmp(end, "exec")) execv(argv[5], argv + 5);
  if (!strcmp(end, "wait")) {
    const char *ready = getenv("STUB_READY");
    while (stub_pending()) usleep(1000);
    if (ready) close(open(ready, O_CREAT | O_WRONLY, 0600));
    pause();
  }
  return 0;
}
