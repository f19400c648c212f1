/* A program that attaches payloads to NVTX ranges as NCCL does: schemas first, the communicator with
 * the end of a range, bytes with the begin of the next ones. No CUDA. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* nvToolsExtPayload.h, nvToolsExt.h, nvtxExtTypes.h */
struct data { uint64_t schema; size_t size; const void *payload; };
struct entry {
  uint64_t flags, type;
  const char *name, *description;
  uint64_t detail, offset;
  const void *semantics, *reserved;
};
struct schema {
  uint64_t fields;
  const char *name;
  uint64_t type, flags;
  const struct entry *entries;
  size_t count, size, align;
  uint64_t id;
  void *extension;
};
struct attributes {
  uint16_t version, size;
  uint32_t category;
  int32_t color_type;
  uint32_t color;
  int32_t payload_type, payloads;
  uint64_t payload;
  int32_t message_type, reserved;
  const void *message;
};
struct segment { size_t id, count; intptr_t *slots; };
struct module {
  uint16_t nvtx, size, id, compatible;
  size_t count;
  struct segment *segments;
  void *export;
  const void *types;
};
struct reduce { uint64_t communicator; size_t bytes; int operation; };
struct comm { uint64_t communicator; int ranks, rank, device; };
enum { UINT64 = 18, SIZE = 22, INT = 5 };

typedef void (*any_function)(void);
static const void *(*create)(const char *);
static int (*push)(const void *, const struct attributes *);
static int (*pop)(const void *);
static any_function *core2[16] = {[4] = (any_function *)&push, [5] = (any_function *)&pop,
                                  [12] = (any_function *)&create};
static int get_table(int module, any_function ***table, unsigned *size) {
  *table = core2, *size = 16;
  return module == 5;
}
static const struct { size_t size; int (*get)(int, any_function ***, unsigned *); } callbacks = {
    sizeof callbacks, get_table};
static const void *export_table(uint32_t number) { return number == 1 ? &callbacks : NULL; }

int main(int argc, char **argv) {
  static const struct entry comm[] = {
      {.type = UINT64, .name = "NCCL communicator ID"},
      {.type = INT, .name = "No. of ranks", .offset = offsetof(struct comm, ranks)},
      {.type = INT, .name = "Rank", .offset = offsetof(struct comm, rank)},
      {.type = INT, .name = "CUDA device", .offset = offsetof(struct comm, device)}};
  static const struct entry reduce[] = {
      {.type = UINT64, .name = "NCCL communicator ID"},
      {.type = SIZE, .name = "Message size [bytes]", .offset = offsetof(struct reduce, bytes)},
      {.type = (1 << 24) + 24, .name = "Reduction operation",
       .offset = offsetof(struct reduce, operation)}};
  const char *path = getenv("NVTX_INJECTION64_PATH");
  void *library = path ? dlopen(path, RTLD_LAZY) : NULL;
  int (*attach)(const void *(*)(uint32_t)) = NULL;
  int (*extend)(struct module *) = NULL;
  intptr_t slots[63] = {0};
  struct segment segment = {0, 63, slots};
  struct module module = {.nvtx = 3, .size = sizeof module, .id = 2, .compatible = 0x0103,
                          .count = 1, .segments = &segment};
  if (!library) return 1;
  *(void **)&attach = dlsym(library, "InitializeInjectionNvtx2");
  *(void **)&extend = dlsym(library, "InitializeInjectionNvtxExtension");
  if (!attach || !extend || !attach(export_table)) return 2;
  module.id = 9; /* another extension, which is not served */
  if (extend(&module)) return 3;
  module.id = 2;
  if (!extend(&module) || !slots[0] || !slots[4]) return 4;
  uint64_t (*add)(const void *, const struct schema *) = (void *)slots[0];
  int (*pop_with)(const void *, const struct data *, size_t) = (void *)slots[4];

  const void *domain = create("NCCL");
  const uint64_t fields = 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8;
  add(domain, &(struct schema){.fields = fields, .type = 1, .entries = comm, .count = 4,
                               .size = sizeof(struct comm), .id = 1 << 24});
  add(domain, &(struct schema){.fields = fields, .type = 1, .entries = reduce, .count = 3,
                               .size = sizeof(struct reduce), .id = (1 << 24) + 5});
  struct attributes with = {.version = 3, .size = sizeof with, .message_type = 1,
                            .message = "ncclCommInitRank"};
  struct comm made = {UINT64_C(0xabcdef0123456789), 4, 2, 2};
  push(domain, &with);
  pop_with(domain, &(struct data){1 << 24, sizeof made, &made}, 1);
  for (int i = 0; i < (argc > 1 ? atoi(argv[1]) : 3); i++) {
    struct reduce call = {made.communicator, (size_t)8192 * (size_t)(i + 1), 0};
    struct data data[1] = {{(1 << 24) + 5, sizeof call, &call}};
    with.message = "ncclAllReduce";
    with.payload_type = (int32_t)0xDFBD0009, with.payloads = 1;
    with.payload = (uint64_t)(uintptr_t)data;
    push(domain, &with);
    pop(domain);
  }
  return 0;
}
