/* NVTX's payload extension: structures that a program attaches to its ranges (NCCL: bytes and
 * communicator of every collective), and the schemas that say what is in them.
 *
 * Structs and slot numbers are those of nvToolsExtPayload.h and nvtxExtTypes.h, module 2, any 1.x. */
#include "recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MODULE = 2, PAYLOADS = 4, ENTRIES = 64 };
#define STATIC_ID (UINT64_C(1) << 24)
#define DYNAMIC_ID (UINT64_C(1) << 32)

struct data { /* nvtxPayloadData_t */
  uint64_t schema;
  size_t size;
  const void *payload;
};

struct entry { /* nvtxPayloadSchemaEntry_t */
  uint64_t flags, type;
  const char *name, *description;
  uint64_t detail, offset;
  const void *semantics, *reserved;
};

enum { HAS_ENTRIES = 1 << 4, HAS_COUNT = 1 << 5, HAS_SIZE = 1 << 6, HAS_ALIGN = 1 << 7,
       HAS_ID = 1 << 8 };

struct schema { /* nvtxPayloadSchemaAttr_t */
  uint64_t fields;
  const char *name;
  uint64_t type, flags;
  const struct entry *entries;
  size_t count, size, align;
  uint64_t id;
  void *extension;
};

struct enumeration { /* nvtxPayloadEnumAttr_t, of which only the id is of use */
  uint64_t fields;
  const char *name;
  const void *entries;
  size_t count, size;
  uint64_t id;
  void *extension;
};
enum { ENUM_HAS_ID = 1 << 5 };

struct segment { size_t id, count; intptr_t *slots; };
struct module { /* nvtxExtModuleInfo_t */
  uint16_t nvtx, size, id, compatible;
  size_t count;
  struct segment *segments;
  intptr_t (*export)(uint32_t);
  const void *types;
};

static uint64_t last_id = DYNAMIC_ID;

static uint64_t new_id(void) { return __atomic_add_fetch(&last_id, 1, __ATOMIC_RELAXED); }

void payloads_put(const void *domain, const void *data, size_t count) {
  const struct data *found = data;
  for (size_t i = 0; found && i < count && i < PAYLOADS; i++)
    if (found[i].payload && found[i].size <= TEXT_ROOM)
      ranges_put('P', domain, found[i].schema, found[i].payload, found[i].size);
}

/* One line for the whole, "align size", then one for each entry, "offset type flags detail name";
 * an entry whose line does not fit, and those after it, are left out. */
static uint64_t register_schema(const void *domain, const struct schema *with) {
  char text[TEXT_ROOM];
  if (!with) return 0;
  uint64_t id = with->fields & HAS_ID && with->id >= STATIC_ID ? with->id : new_id();
  if (!(with->fields & HAS_ENTRIES) || !(with->fields & HAS_COUNT) || !with->entries) return id;
  int used = snprintf(text, sizeof text, "%zu %zu\n", with->fields & HAS_ALIGN ? with->align : 0,
                      with->fields & HAS_SIZE ? with->size : 0);
  for (size_t i = 0; i < with->count && i < ENTRIES; i++) {
    const struct entry *entry = with->entries + i;
    char name[64];
    size_t length = 0;
    for (const char *s = entry->name; s && *s && length < sizeof name - 1; s++)
      name[length++] = *s == '\n' ? ' ' : *s;
    name[length] = 0;
    int more = snprintf(text + used, sizeof text - (size_t)used, "%llu %llu %llu %llu %s\n",
                        (unsigned long long)entry->offset, (unsigned long long)entry->type,
                        (unsigned long long)entry->flags, (unsigned long long)entry->detail, name);
    if (more < 0 || (size_t)(used + more) >= sizeof text) break;
    used += more;
  }
  ranges_put('K', domain, id, text, (size_t)used);
  return id;
}

static uint64_t register_enumeration(const void *domain, const struct enumeration *with) {
  (void)domain;
  return with && with->fields & ENUM_HAS_ID && with->id >= STATIC_ID ? with->id : new_id();
}

static void mark(const void *domain, const void *data, size_t count) {
  payloads_put(domain, data, count);
  ranges_put('M', domain, 0, "", 0);
}
static int push(const void *domain, const void *data, size_t count) {
  payloads_put(domain, data, count);
  return ranges_push(domain);
}
static int pop(const void *domain, const void *data, size_t count) {
  payloads_put(domain, data, count);
  return ranges_pop(domain);
}
static uint64_t start(const void *domain, const void *data, size_t count) {
  payloads_put(domain, data, count);
  return ranges_start(domain);
}
static void end(const void *domain, uint64_t id, const void *data, size_t count) {
  payloads_put(domain, data, count);
  ranges_put('E', domain, id, "", 0);
}
static uint8_t is_enabled(const void *domain) { return (void)domain, 1; }
static uint64_t register_scope(const void *domain, const void *with) {
  return (void)domain, (void)with, new_id();
}

/* NVTX asks a library that it has loaded for this too; a range that ends with a payload would have
 * no end without it. */
EXPORT int InitializeInjectionNvtxExtension(struct module *module);
EXPORT int InitializeInjectionNvtxExtension(struct module *module) {
  const struct { size_t number; intptr_t function; } slots[] = {
      {0, (intptr_t)register_schema}, {1, (intptr_t)register_enumeration}, {2, (intptr_t)mark},
      {3, (intptr_t)push}, {4, (intptr_t)pop}, {5, (intptr_t)start}, {6, (intptr_t)end},
      {7, (intptr_t)is_enabled}, {12, (intptr_t)register_scope}};
  if (!module || module->size < sizeof *module || module->id != MODULE ||
      module->compatible >> 8 != 1 || !module->count || !module->segments || !process_begin())
    return 0;
  for (size_t i = 0; i < sizeof slots / sizeof *slots; i++)
    if (slots[i].number < module->segments->count)
      module->segments->slots[slots[i].number] = slots[i].function;
  return 1;
}
