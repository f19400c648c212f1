/* Preloaded: the wall clock is set back by an hour, LLMPROF_CLOCK_MS after a process began. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);
static struct timespec began;

static long back(void) {
  struct timespec now;
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  real(CLOCK_MONOTONIC, &now);
  if (!began.tv_sec) began = now;
  const char *text = getenv("LLMPROF_CLOCK_MS");
  long passed = (now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000;
  return passed >= (text ? atol(text) : 0) ? 3600 : 0;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  long seconds = back();
  int code = real(clock, time);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) time->tv_sec -= seconds;
  return code;
}

int gettimeofday(struct timeval *restrict when, void *restrict zone) {
  struct timespec time;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &time);
  when->tv_sec = time.tv_sec, when->tv_usec = time.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *when) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (when) *when = now.tv_sec;
  return now.tv_sec;
}
