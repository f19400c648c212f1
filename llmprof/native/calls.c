/* API calls: which of them are recorded, and which threads launch.
 *
 * Traps, each met on an H100 (CUDA 13.0):
 *   - All of the API (kinds 4 and 5) makes 18 records a kernel and an eager step 1.34 times slower
 *     than CUPTI's floor. The calls chosen below cost nothing that can be measured.
 *   - Choosing calls one by one has no effect, and no error, anywhere but within cuInit. Later the
 *     kinds are switched on as a whole and all other calls left out one by one: the same records.
 *   - Kinds that are switched on take back what was chosen or left out before. */
#include "recorder.h"

enum { MOST_IDS = 2048 };

/* Launches, copies, sets, waits, allocations: what ties a kernel to a host thread and a time. */
static const uint16_t RUNTIME_CALLS[] = {13,  20,  22,  31,  41,  44,  51,  131, 137,
                                         147, 165, 211, 214, 269, 311, 312, 430, 431};
static const uint16_t DRIVER_CALLS[] = {17,  121, 126, 277, 278, 279, 306,
                                        307, 442, 477, 514, 515, 652, 653};
static const uint16_t RUNTIME_WAITS[] = {131, 137, 165}, DRIVER_WAITS[] = {17, 121, 126};
#define COUNT(array) (sizeof(array) / sizeof *(array))
#define HAS(array, id) has(array, COUNT(array), id)

static int one_by_one, refused_told; /* they were chosen within cuInit; that they cannot be */
static uint32_t launcher, several;   /* of the open window */

static int has(const uint16_t *ids, size_t count, uint32_t id) {
  for (size_t i = 0; i < count; i++)
    if (ids[i] == id) return 1;
  return 0;
}

static int choose(const uint16_t *ids, size_t count, int (*enable)(uint32_t, uint8_t), int wanted) {
  int refused = 0;
  for (size_t i = 0; i < count; i++) refused += enable(ids[i], (uint8_t)wanted) != 0;
  return refused;
}

/* Ids have no gaps: the first that is refused is behind the last. */
static void leave_others_out(const uint16_t *ids, size_t count, int (*enable)(uint32_t, uint8_t)) {
  for (uint32_t id = 1; id < MOST_IDS; id++)
    if (!has(ids, count, id) && enable(id, 0)) break;
}

void calls_switch(int wanted, int within_init) {
  if (!cupti.ActivityEnableRuntimeApi || !cupti.ActivityEnableDriverApi) {
    if (wanted && !refused_told++)
      write_error("cuptiActivityEnableRuntimeApi", 0,
                  "this CUPTI (before CUDA 12.5) cannot choose API calls: kernels without calls");
    return;
  }
  if (wanted ? within_init : one_by_one) {
    int refused = choose(RUNTIME_CALLS, COUNT(RUNTIME_CALLS), cupti.ActivityEnableRuntimeApi, wanted);
    refused += choose(DRIVER_CALLS, COUNT(DRIVER_CALLS), cupti.ActivityEnableDriverApi, wanted);
    if (refused && wanted) write_error("API calls that this CUPTI does not know", refused, "");
  } else if (wanted) {
    cupti.ActivityEnable(RUNTIME), cupti.ActivityEnable(DRIVER);
    leave_others_out(RUNTIME_CALLS, COUNT(RUNTIME_CALLS), cupti.ActivityEnableRuntimeApi);
    leave_others_out(DRIVER_CALLS, COUNT(DRIVER_CALLS), cupti.ActivityEnableDriverApi);
  } else {
    cupti.ActivityDisable(RUNTIME), cupti.ActivityDisable(DRIVER);
  }
  one_by_one = wanted && within_init;
}

int calls_launch(uint32_t kind, uint32_t id) {
  if (kind == RUNTIME) return HAS(RUNTIME_CALLS, id) && !HAS(RUNTIME_WAITS, id);
  return kind == DRIVER && HAS(DRIVER_CALLS, id) && !HAS(DRIVER_WAITS, id);
}

/* Of a record that CUPTI has handed over. */
void calls_saw(uint32_t kind, uint32_t id, uint32_t thread) {
  uint32_t known = __atomic_load_n(&launcher, __ATOMIC_RELAXED);
  if (thread == known || !calls_launch(kind, id)) return;
  if (known) __atomic_store_n(&several, 1, __ATOMIC_RELAXED);
  else __atomic_store_n(&launcher, thread, __ATOMIC_RELAXED);
}

void calls_new_window(void) {
  __atomic_store_n(&launcher, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&several, 0, __ATOMIC_RELAXED);
}
uint32_t calls_launcher(void) { return __atomic_load_n(&launcher, __ATOMIC_RELAXED); }
int calls_by_several(void) { return (int)__atomic_load_n(&several, __ATOMIC_RELAXED); }
void calls_forget(void) { one_by_one = 0, calls_new_window(); }
