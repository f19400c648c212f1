/* The recorder of `llmprof record`: a library that the CUDA driver loads into every process of a
 * program (CUDA_INJECTION64_PATH), and NVTX too (NVTX_INJECTION64_PATH). It writes what CUPTI and
 * NVTX hand over into one spool file a process image; llmprof reads along from outside.
 *
 * Whatever goes wrong here, the program goes on: nothing in these files ends the process, and a
 * spool that cannot be written is closed for good.
 *
 *   process.c   entry points, the helper thread, fork, exit, SIGTERM
 *   activity.c  CUPTI: order of calls, buffers, window on and off
 *   calls.c     API calls: which are recorded, who launches
 *   library.c   which libcupti
 *   names.c     kernel names, record sizes
 *   ranges.c    NVTX
 *   payloads.c  its payload extension
 *   spool.c     frames, JSON, the control page
 *
 * No CUDA header is needed: what is used of cupti_activity.h is the same from CUDA 12.0 to 13.5. */
#ifndef LLMPROF_RECORDER_H
#define LLMPROF_RECORDER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define EXPORT __attribute__((visibility("default")))

/* Frame kinds, as in llmprof/tracers/cupti/spool.py. */
enum frame_kind {
  FRAME_LAYOUT = 1, FRAME_RECORDS, FRAME_MARK, FRAME_NAMES,
  FRAME_PROCESS, FRAME_NVTX, FRAME_DEVICES, FRAME_ERROR
};

/* CUpti_ActivityKind */
enum { MEMCPY = 1, MEMSET = 2, KERNEL = 3, DRIVER = 4, RUNTIME = 5, CONCURRENT_KERNEL = 10,
       MEMCPY_PEER = 22, SYNCHRONIZATION = 38, KINDS = 64 };

/* What `llmprof record --trace` asks for. */
enum level { LEVEL_STEPS, LEVEL_KERNELS, LEVEL_FULL, LEVEL_ALL };

/* Bits of the control page's first word. */
enum { WANT_ACTIVITY = 1, WANT_RANGES = 2,
       WANT_LEAVE = 4, /* where the window is closed CUPTI is given back */
       WANT_FLOOR = 8 /* benchmarks: what CUPTI hands over is thrown away */ };

/* The page shared with llmprof: it writes `wanted`, the processes write the rest. */
struct control {
  uint32_t wanted;
  uint32_t lost_spools; /* spools that were closed for want of space */
  int32_t lost_errno;   /* why the first of them was */
  uint32_t unused;
  uint64_t lost_ns;     /* when, CLOCK_MONOTONIC; 0: none was */
};

uint64_t monotonic_ns(void);
uint64_t wall_ns(void);
uint32_t thread_id(void);

/* spool.c */
typedef struct { char *at; size_t length, room; int failed; } text_t;
void put_bytes(text_t *text, const char *bytes, size_t length);
void put_text(text_t *text, const char *string);
void put_quoted(text_t *text, const char *bytes, size_t length);
void put_key(text_t *text, const char *key);
void put_number(text_t *text, const char *key, long long value);
void put_string(text_t *text, const char *key, const char *string);
void write_text(uint16_t kind, text_t *text); /* frees it */
void free_text(text_t *text);
void write_frame(uint16_t kind, const void *payload, uint64_t length);
void write_error(const char *what, long code, const char *advice);
int spool_open(const char *path);
int spool_is_open(void);
void spool_close(void);
void spool_forget(void); /* in a forked child */
void spool_abandon(const char *folder);
void control_map(const char *folder);
int control_is_orphan(const char *folder);
uint32_t control_wanted(void);

/* library.c: a handle, and in `found` (PATH_ROOM bytes) its path and how it was found */
enum { PATH_ROOM = 4096 };
void *find_cupti(const char *fallback, char *found);

/* names.c */
void names_start(uint32_t cupti_version);
void names_of_buffer(uint8_t *buffer, size_t valid);
void names_recheck(void);
void names_forget(void);

/* activity.c */
struct cupti {
  int (*GetVersion)(uint32_t *);
  int (*GetTimestamp)(uint64_t *);
  int (*SetThreadIdType)(int);
  int (*ActivityRegisterCallbacks)(void (*)(uint8_t **, size_t *, size_t *),
                                   void (*)(void *, uint32_t, uint8_t *, size_t, size_t));
  int (*ActivityEnable)(int);
  int (*ActivityDisable)(int);
  int (*ActivityFlushAll)(uint32_t);
  int (*ActivityGetNumDroppedRecords)(void *, uint32_t, size_t *);
  int (*ActivityGetNextRecord)(uint8_t *, size_t, uint8_t **);
  int (*ActivitySetAttribute)(int, size_t *, void *);
  int (*GetCallbackName)(int, uint32_t, const char **);
  /* Not in every CUDA 12. */
  int (*ActivityRegisterTimestampCallback)(uint64_t (*)(void));
  int (*Subscribe)(void **, void (*)(void *, int, uint32_t, const void *), void *);
  int (*ActivityEnableRuntimeApi)(uint32_t, uint8_t);
  int (*ActivityEnableDriverApi)(uint32_t, uint8_t);
  int (*EnableDomain)(uint32_t, void *, int);
  int (*Unsubscribe)(void *);
  int (*Finalize)(void);
};
extern struct cupti cupti;
/* Attaches where CUPTI is not there. `within_init`: in the driver's call within cuInit. */
void activity_open(enum level level, const char *fallback, int within_init);
void activity_close(void);
void activity_leave(void); /* closes, and gives CUPTI back within the program's next call */
void activity_retry(void); /* the next window may ask for CUPTI again */
void activity_settle(void);
int activity_was_refused(void);
int activity_is_leaving(void);
int activity_is_on(void);
int activity_is_started(void);
int activity_buffers_out(void);
uint64_t activity_completed(void);
void activity_flush(int forced);
void activity_mark(const char *where);
void activity_forget(void);

/* calls.c; of the open window: the first thread that launched, 0: none; was there another one? */
void calls_switch(int wanted, int within_init);
void calls_new_window(void);
void calls_saw(uint32_t kind, uint32_t id, uint32_t thread);
int calls_launch(uint32_t kind, uint32_t id);
uint32_t calls_launcher(void);
int calls_by_several(void);
void calls_forget(void);

/* ranges.c; a text, a payload and a schema have TEXT_ROOM bytes at most */
enum { TEXT_ROOM = 1024 };
void ranges_put(char type, const void *domain, uint64_t id, const void *bytes, size_t length);
int ranges_push(const void *domain);
int ranges_pop(const void *domain);
uint64_t ranges_start(const void *domain);
void ranges_flush(void);
void ranges_forget(void);
int ranges_attach(const void *(*export_table)(uint32_t));

/* payloads.c; `data` is nvtxPayloadData_t[count] */
void payloads_put(const void *domain, const void *data, size_t count);

/* process.c */
int process_begin(void); /* the spool and the helper of this process image; 0 where none can be */

#endif
