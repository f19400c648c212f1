/* Names and sizes: what only the process itself can know about its records.
 *
 * A kernel's name is a pointer that dies with the process, so each new one is written the moment
 * its first record is handed over; a process that is killed then loses no name. */
#include "recorder.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SLOTS = 1 << 16, NAME_ROOM = 1 << 16, NAME_AT = 104, ID_AT = 4, THREAD_AT = 28, IDS = 2048,
       CHECKED_BUFFERS = 3, CHECKED_RECORDS = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t version;
static uint16_t sizes[KINDS];
static int checked;              /* buffers that CUPTI itself has walked */
static uint64_t pointers[SLOTS]; /* open addressing; 0: free */
static uint64_t digests[SLOTS];
static uint32_t known, full_told;
static uint8_t ids_known[2][IDS]; /* driver, runtime */
static int memory = -1;           /* /proc/self/mem */
static char name[NAME_ROOM];      /* under `lock` */

/* Record sizes by cuptiGetVersion: the table of llmprof/tracers/cupti/layout.py. */
static void known_sizes(void) {
  uint16_t kernel = version < 100 ? 208 : version < 130100 ? 216 : version < 130300 ? 224
                  : version < 130400 ? 232 : 248;
  memset(sizes, 0, sizeof sizes);
  sizes[KERNEL] = sizes[CONCURRENT_KERNEL] = kernel;
  sizes[MEMCPY] = version < 26 ? 88 : version < 130400 ? 96 : 112;
  sizes[MEMSET] = version < 130400 ? 88 : 104;
  sizes[DRIVER] = sizes[RUNTIME] = 40;
  sizes[SYNCHRONIZATION] = version < 26 ? 40 : 56;
  sizes[MEMCPY_PEER] = 96;
}

static void write_layout(const char *source) {
  text_t text = {0};
  char kind[16];
  put_text(&text, "{");
  put_number(&text, "cupti_version", version);
  put_key(&text, "sizes");
  put_text(&text, "{");
  for (int i = 1; i < KINDS; i++)
    if (sizes[i]) {
      snprintf(kind, sizeof kind, "%d", i);
      put_number(&text, kind, sizes[i]);
    }
  put_text(&text, "}");
  put_string(&text, "source", source);
  put_text(&text, "}");
  write_text(FRAME_LAYOUT, &text);
}

void names_start(uint32_t cupti_version) {
  version = cupti_version;
  known_sizes();
  write_layout("table");
}

void names_forget(void) {
  pthread_mutex_init(&lock, NULL);
  if (known) memset(pointers, 0, sizeof pointers); /* half a MiB: not at each fork and exec */
  memset(ids_known, 0, sizeof ids_known);
  known = full_told = 0, checked = 0;
  if (memory >= 0) close(memory); /* it is the parent's memory */
  memory = -1;
}

/* What CUPTI's own walk shows overrules the table, for any version to come. */
static void learn(uint8_t *buffer, size_t valid) {
  uint8_t *record = NULL, *before = NULL;
  int changed = 0;
  for (int i = 0; i < CHECKED_RECORDS; i++) {
    int code = cupti.ActivityGetNextRecord(buffer, valid, &record);
    uint8_t *now = code ? buffer + valid : record;
    uint32_t kind;
    if (before && now > before && now - before < 4096) {
      memcpy(&kind, before, 4);
      if (kind < KINDS && sizes[kind] != now - before)
        sizes[kind] = (uint16_t)(now - before), changed = 1;
    }
    if (code) break;
    before = record;
  }
  checked++;
  if (changed) write_layout("learnt");
}

/* The C string at `pointer`, its length; -1 where it cannot be read. Through /proc/self/mem: a
 * pointer from a record of an unexpected shape is an error there and not a crash of the program. */
static long read_string(uint64_t pointer, char *out) {
  size_t n = 0;
  if (pointer < 4096 || pointer >> 56) return -1;
  if (memory < 0) memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  while (n < NAME_ROOM - 1) {
    size_t part = 4096 - (pointer + n) % 4096; /* not past a page: the mapping may end there */
    if (part > NAME_ROOM - 1 - n) part = NAME_ROOM - 1 - n;
    ssize_t got = pread(memory, out + n, part, (off_t)(pointer + n));
    if (got <= 0) return -1;
    char *end = memchr(out + n, 0, (size_t)got);
    if (end) return end - out;
    n += (size_t)got;
  }
  return (long)n;
}

static uint64_t digest(const char *text, long length) { /* FNV-1a */
  uint64_t h = 1469598103934665603ull;
  while (length-- > 0) h = (h ^ (unsigned char)*text++) * 1099511628211ull;
  return h;
}

/* The slot of a pointer that was not seen before; -1 for a known one. */
static int new_slot(uint64_t pointer) {
  uint32_t i = (uint32_t)((pointer >> 3) * 2654435761u) & (SLOTS - 1);
  while (pointers[i] && pointers[i] != pointer) i = (i + 1) & (SLOTS - 1);
  if (pointers[i]) return -1;
  if (known >= SLOTS * 3 / 4) {
    if (!full_told++) write_error("more kernel names than the table holds", SLOTS * 3 / 4, "");
    return -1;
  }
  known++, pointers[i] = pointer;
  return (int)i;
}

/* `name` goes behind its pointer. */
static void put_name(text_t *kernels, uint64_t pointer, long length) {
  char key[32];
  snprintf(key, sizeof key, "%llu", (unsigned long long)pointer);
  if (kernels->length) put_text(kernels, ",");
  put_quoted(kernels, key, strlen(key));
  put_text(kernels, ":");
  put_quoted(kernels, name, (size_t)length);
}

static void kernel_name(uint64_t pointer, text_t *kernels) {
  int slot = pointer ? new_slot(pointer) : -1;
  if (slot < 0) return;
  long length = read_string(pointer, name);
  digests[slot] = digest(name, length);
  if (length >= 0) put_name(kernels, pointer, length);
}

static void api_name(uint32_t kind, uint32_t id, text_t *api) {
  const char *call = NULL;
  char key[16];
  if (id >= IDS || ids_known[kind == RUNTIME][id]) return;
  ids_known[kind == RUNTIME][id] = 1;
  if (cupti.GetCallbackName(kind == DRIVER ? 1 : 2, id, &call) || !call) return;
  snprintf(key, sizeof key, "%u", id);
  if (api->length) put_text(api, ",");
  put_quoted(api, key, strlen(key));
  put_text(api, ":");
  put_quoted(api, call, strlen(call));
}

static void write_names(text_t *kernels, text_t api[2]) {
  text_t text = {0};
  if (kernels->length + api[0].length + api[1].length) {
    put_text(&text, "{\"kernels\":{");
    put_bytes(&text, kernels->at, kernels->length);
    put_text(&text, "},\"api\":{\"4\":{");
    put_bytes(&text, api[0].at, api[0].length);
    put_text(&text, "},\"5\":{");
    put_bytes(&text, api[1].at, api[1].length);
    put_text(&text, "}}}");
    text.failed |= kernels->failed | api[0].failed | api[1].failed;
    write_text(FRAME_NAMES, &text);
  }
  free_text(kernels), free_text(&api[0]), free_text(&api[1]);
}

/* All records of the buffer; where it stopped: short of `valid` at a kind of unknown size. */
static size_t walk(const uint8_t *buffer, size_t valid, text_t *kernels, text_t api[2]) {
  size_t at = 0;
  while (at + 8 <= valid) {
    uint32_t head[2];
    uint64_t pointer;
    memcpy(head, buffer + at, sizeof head);
    size_t size = head[0] < KINDS ? sizes[head[0]] : 0;
    if (!size || at + size > valid) break;
    if (head[0] == CONCURRENT_KERNEL || head[0] == KERNEL) {
      memcpy(&pointer, buffer + at + NAME_AT, sizeof pointer);
      kernel_name(pointer, kernels);
    } else if (head[0] == RUNTIME || head[0] == DRIVER) {
      uint32_t thread;
      memcpy(&thread, buffer + at + THREAD_AT, sizeof thread);
      calls_saw(head[0], head[ID_AT / 4], thread);
      api_name(head[0], head[ID_AT / 4], &api[head[0] == RUNTIME]);
    }
    at += size;
  }
  return at;
}

/* Names first, then the records that use them: a reader never meets an unknown pointer. */
void names_of_buffer(uint8_t *buffer, size_t valid) {
  text_t kernels = {0}, api[2] = {{0}, {0}};
  pthread_mutex_lock(&lock);
  if (checked < CHECKED_BUFFERS) learn(buffer, valid);
  size_t end = walk(buffer, valid, &kernels, api);
  if (end < valid) { /* a kind that was not met in the first buffers */
    learn(buffer, valid);
    end = walk(buffer, valid, &kernels, api);
  }
  write_names(&kernels, api);
  pthread_mutex_unlock(&lock);
  if (end < valid) write_error("records of unknown size", (long)(valid - end), "");
}

/* A module that is unloaded may give its address to another one's name: look again, and write what
 * has changed. Never seen to happen in 45 s of Triton, Inductor and XLA; costs 1 µs a name. */
void names_recheck(void) {
  text_t kernels = {0}, api[2] = {{0}, {0}};
  pthread_mutex_lock(&lock);
  for (int i = 0; i < SLOTS; i++) {
    if (!pointers[i]) continue;
    long length = read_string(pointers[i], name);
    if (length < 0 || digest(name, length) == digests[i]) continue;
    digests[i] = digest(name, length);
    put_name(&kernels, pointers[i], length);
  }
  write_names(&kernels, api);
  pthread_mutex_unlock(&lock);
}
