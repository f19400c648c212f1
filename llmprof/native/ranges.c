/* NVTX without CUPTI: it works before CUDA is there, and on machines without a GPU.
 *
 * Table numbers and structs are those of nvtxTypes.h and nvToolsExt.h (NVTX 2 and 3). Every library
 * with an NVTX of its own (torch, NCCL, the Python package) attaches once. */
#include "recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

enum { RING = 1 << 16, CALLBACKS = 1, CORE = 1, CORE2 = 5 };
#define EXTENDED ((int32_t)0xDFBD0009) /* NVTX_PAYLOAD_TYPE_EXT */
enum { ASCII = 1, UNICODE = 2, REGISTERED = 3 };

/* A FRAME_NVTX is a row of these, each followed by `length` bytes of text, padded to 8. */
struct event {
  uint64_t time_ns, id, domain, payload;
  uint32_t tid;
  uint16_t length;
  uint8_t type; /* ( ) push, pop; S E start, end; M mark; D a domain's name; T a thread's name;
                   P a payload of the thread's next event, id: its schema; K a schema */
  uint8_t payload_type;
};
_Static_assert(sizeof(struct event) == 40, "as llmprof reads it");

struct attributes { /* nvtxEventAttributes_t */
  uint16_t version, size;
  uint32_t category;
  int32_t color_type;
  uint32_t color;
  int32_t payload_type, payloads; /* how many, where they are of the payload extension */
  uint64_t payload;
  int32_t message_type, reserved_too;
  const void *message;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t ring[RING];
static size_t used;
static uint64_t last_id;
static __thread int depth;

static void flush_locked(void) {
  if (used) write_frame(FRAME_NVTX, ring, used);
  used = 0;
}

void ranges_flush(void) {
  pthread_mutex_lock(&lock);
  flush_locked();
  pthread_mutex_unlock(&lock);
}

void ranges_forget(void) {
  pthread_mutex_init(&lock, NULL);
  used = 0;
}

static void put(char type, const void *domain, uint64_t id, const char *string, size_t length,
                int payload_type, uint64_t payload) {
  if (!(control_wanted() & WANT_RANGES) && type != 'D' && type != 'T' &&
      type != 'K')
    return;
  struct event event = {
      .time_ns = monotonic_ns(), .id = id, .domain = (uint64_t)(uintptr_t)domain,
      .payload = payload, .tid = thread_id(),
      .length = (uint16_t)(length > TEXT_ROOM ? TEXT_ROOM : length), .type = (uint8_t)type,
      .payload_type = (uint8_t)payload_type};
  size_t text = event.length, total = sizeof event + ((text + 7) & ~(size_t)7);
  if (!spool_is_open() && !process_begin()) return; /* the first event after a fork, or no room */
  pthread_mutex_lock(&lock);
  if (used + total > RING) flush_locked();
  memcpy(ring + used, &event, sizeof event);
  memset(ring + used + total - 8, 0, text ? 8 : 0);
  memcpy(ring + used + sizeof event, string, text);
  used += total;
  pthread_mutex_unlock(&lock);
}

static void put_plain(char type, const void *domain, uint64_t id, const char *string) {
  put(type, domain, id, string ? string : "", string ? strlen(string) : 0, 0, 0);
}

static size_t narrow(const wchar_t *wide, char *out) {
  size_t n = 0;
  for (; wide && *wide && n < TEXT_ROOM; wide++) out[n++] = *wide < 128 ? (char)*wide : '?';
  return n;
}

static void put_wide(char type, const void *domain, uint64_t id, const wchar_t *string) {
  char text[TEXT_ROOM];
  put(type, domain, id, text, narrow(string, text), 0, 0);
}

static void put_with(char type, const void *domain, uint64_t id, const struct attributes *with) {
  char wide[TEXT_ROOM];
  const char *string = "";
  size_t length = 0;
  if (!with || with->size < sizeof *with) {
    put(type, domain, id, string, length, 0, 0);
    return;
  }
  if ((with->message_type == ASCII || with->message_type == REGISTERED) && with->message) {
    string = with->message;
    length = strnlen(string, TEXT_ROOM);
  } else if (with->message_type == UNICODE) {
    string = wide, length = narrow(with->message, wide);
  }
  if (with->payload_type == EXTENDED && with->payloads > 0) {
    payloads_put(domain, (const void *)(uintptr_t)with->payload, (size_t)with->payloads);
    put(type, domain, id, string, length, 0, 0);
    return;
  }
  put(type, domain, id, string, length, with->payload_type, with->payload);
}

static uint64_t new_id(void) { return __atomic_add_fetch(&last_id, 1, __ATOMIC_RELAXED); }

static void mark_with(const struct attributes *a) { put_with('M', NULL, 0, a); }
static void mark_a(const char *s) { put_plain('M', NULL, 0, s); }
static void mark_w(const wchar_t *s) { put_wide('M', NULL, 0, s); }
static uint64_t start_with(const struct attributes *a) {
  uint64_t id = new_id();
  return put_with('S', NULL, id, a), id;
}
static uint64_t start_a(const char *s) {
  uint64_t id = new_id();
  return put_plain('S', NULL, id, s), id;
}
static uint64_t start_w(const wchar_t *s) {
  uint64_t id = new_id();
  return put_wide('S', NULL, id, s), id;
}
static void end_range(uint64_t id) { put_plain('E', NULL, id, NULL); }
static int push_with(const struct attributes *a) { return put_with('(', NULL, 0, a), depth++; }
static int push_a(const char *s) { return put_plain('(', NULL, 0, s), depth++; }
static int push_w(const wchar_t *s) { return put_wide('(', NULL, 0, s), depth++; }
static int pop(void) { return put_plain(')', NULL, 0, NULL), --depth; }
static void name_thread_a(uint32_t tid, const char *s) { put_plain('T', NULL, tid, s); }

static void domain_mark(const void *d, const struct attributes *a) { put_with('M', d, 0, a); }
static uint64_t domain_start(const void *d, const struct attributes *a) {
  uint64_t id = new_id();
  return put_with('S', d, id, a), id;
}
static void domain_end(const void *d, uint64_t id) { put_plain('E', d, id, NULL); }
static int domain_push(const void *d, const struct attributes *a) {
  return put_with('(', d, 0, a), depth++;
}
static int domain_pop(const void *d) { return put_plain(')', d, 0, NULL), --depth; }

void ranges_put(char type, const void *domain, uint64_t id, const void *bytes, size_t length) {
  put(type, domain, id, bytes, length, 0, 0);
}
int ranges_push(const void *domain) { return put_plain('(', domain, 0, NULL), depth++; }
int ranges_pop(const void *domain) { return domain_pop(domain); }
uint64_t ranges_start(const void *domain) {
  uint64_t id = new_id();
  return put_plain('S', domain, id, NULL), id;
}

/* Handles are our own copies of the text: what a range refers to may be gone when it ends. */
static const void *register_a(const void *domain, const char *s) {
  (void)domain;
  return strdup(s ? s : "");
}
static const void *register_w(const void *domain, const wchar_t *s) {
  char text[TEXT_ROOM + 1];
  (void)domain;
  text[narrow(s, text)] = 0;
  return strdup(text);
}
static const void *create_a(const char *s) {
  char *handle = strdup(s ? s : "");
  if (handle) put_plain('D', handle, 0, handle);
  return handle;
}
static const void *create_w(const wchar_t *s) {
  char text[TEXT_ROOM + 1];
  text[narrow(s, text)] = 0;
  return create_a(text);
}

typedef void (*any_function)(void);
struct slot { unsigned number; any_function function; };
#define SLOT(n, f) {n, (any_function)(f)}

static void fill(any_function **table, unsigned size, const struct slot *slots, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (slots[i].number < size && table[slots[i].number])
      *table[slots[i].number] = slots[i].function;
}

int ranges_attach(const void *(*export_table)(uint32_t)) {
  static const struct slot core[] = {
      SLOT(1, mark_with), SLOT(2, mark_a), SLOT(3, mark_w), SLOT(4, start_with), SLOT(5, start_a),
      SLOT(6, start_w), SLOT(7, end_range), SLOT(8, push_with), SLOT(9, push_a), SLOT(10, push_w),
      SLOT(11, pop), SLOT(14, name_thread_a)};
  static const struct slot core2[] = {
      SLOT(1, domain_mark), SLOT(2, domain_start), SLOT(3, domain_end), SLOT(4, domain_push),
      SLOT(5, domain_pop), SLOT(10, register_a), SLOT(11, register_w), SLOT(12, create_a),
      SLOT(13, create_w)};
  const struct { size_t size; int (*get)(int, any_function ***, unsigned *); } *callbacks =
      export_table ? export_table(CALLBACKS) : NULL;
  any_function **table;
  unsigned size;
  if (!callbacks) return 0;
  if (callbacks->get(CORE, &table, &size)) fill(table, size, core, sizeof core / sizeof *core);
  if (callbacks->get(CORE2, &table, &size)) fill(table, size, core2, sizeof core2 / sizeof *core2);
  return 1;
}
