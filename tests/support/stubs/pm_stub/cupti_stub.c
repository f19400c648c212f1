/* libcupti.so.13 for tests: the PM sampling entry points, over a made-up signal.
 *
 * Struct layouts: cupti_pmsampling.h and cupti_profiler_host.h of CUPTI 13.0. Samples follow one
 * another on CLOCK_REALTIME from Start to Stop; DRAM is at 80 % in even periods of 10 ms of that
 * clock and at 20 % in odd ones, SMs at 50 %. What is decoded is what time has made of it, so the
 * times are real and nothing sleeps.
 *
 * LLMPROF_STUB_CUPTI (words): segv-open, segv-stop, privileges, busy, chip, no-read, no-time,
 * overflow, old. LLMPROF_STUB_SKEW_NS is added to every sample's times: a clock of its own.
 */
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HEAD size_t size; void *priv
#define SIZED(type, last) (offsetof(type, last) + sizeof(((type *)0)->last))
#define CHECK(p, type, last) if ((p)->size != SIZED(type, last)) return INVALID_PARAMETER

enum { INVALID_PARAMETER = 1, INVALID_OPERATION = 7, INVALID_METRIC = 17, UNSUPPORTED = 27,
       PRIVILEGES = 35, BAD_CHIP = 46 };
enum { RECORD_BYTES = 64 };

typedef struct { uint32_t capacity, used; uint64_t first; } Image; /* then RECORD_BYTES each */

static uint64_t interval, begun, stopped, decoded;
static int enabled, has_read = 1;
static size_t metric_count;

static int mode(const char *word) {
    const char *set = getenv("LLMPROF_STUB_CUPTI");
    return set && strstr(set, word) != NULL;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int cuptiGetVersion(uint32_t *version) { *version = mode("old") ? 24 : 130001; return 0; }
int cuptiGetResultString(int code, const char **text) {
    *text = code == BAD_CHIP ? "CUPTI_ERROR_INVALID_CHIP_NAME" : "CUPTI_ERROR_STUB";
    return 0;
}
int cuptiProfilerInitialize(void *p) { (void)p; return 0; }
int cuptiProfilerDeInitialize(void *p) { (void)p; return 0; }

typedef struct { HEAD; size_t device; const char *chip; } ChipName;
int cuptiDeviceGetChipName(ChipName *p) {
    CHECK(p, ChipName, chip);
    p->chip = "STUB100";
    return 0;
}

typedef struct { HEAD; size_t device, image_size; uint8_t *image; } Availability;
int cuptiPmSamplingGetCounterAvailability(Availability *p) {
    CHECK(p, Availability, image);
    if (mode("privileges")) return PRIVILEGES;
    if (!p->image) p->image_size = 100;
    else memset(p->image, 7, p->image_size);
    return 0;
}

typedef struct { HEAD; int type; const char *chip; const uint8_t *availability; void *host; } HostInit;
int cuptiProfilerHostInitialize(HostInit *p) {
    CHECK(p, HostInit, host);
    if (mode("segv-open")) raise(SIGSEGV);
    if (mode("chip")) return BAD_CHIP;
    if (p->type != 1 || strcmp(p->chip, "STUB100") || p->availability[99] != 7)
        return INVALID_PARAMETER;
    p->host = malloc(1);
    return 0;
}
typedef struct { HEAD; void *host; } Host;
int cuptiProfilerHostDeinitialize(Host *p) { free(p->host); return 0; }

typedef struct { HEAD; void *host; const char **names; size_t count; } AddMetrics;
int cuptiProfilerHostConfigAddMetrics(AddMetrics *p) {
    CHECK(p, AddMetrics, count);
    has_read = 0;
    for (size_t i = 0; i < p->count; i++)
        if (strstr(p->names[i], "dram__read")) has_read = 1;
    if (has_read && mode("no-read")) return INVALID_METRIC;
    metric_count = p->count;
    return 0;
}
typedef struct { HEAD; void *host; size_t image_size; } ConfigSize;
int cuptiProfilerHostGetConfigImageSize(ConfigSize *p) {
    CHECK(p, ConfigSize, image_size);
    p->image_size = 50;
    return 0;
}
typedef struct { HEAD; void *host; size_t image_size; uint8_t *image; } ConfigImage;
int cuptiProfilerHostGetConfigImage(ConfigImage *p) {
    CHECK(p, ConfigImage, image);
    memset(p->image, 9, p->image_size);
    return 0;
}
typedef struct { HEAD; size_t image_size; uint8_t *image; size_t passes; } Passes;
int cuptiProfilerHostGetNumOfPasses(Passes *p) {
    CHECK(p, Passes, passes);
    p->passes = 1;
    return 0;
}

typedef struct { HEAD; size_t device; void *sampler; } Enable;
int cuptiPmSamplingEnable(Enable *p) {
    CHECK(p, Enable, sampler);
    if (enabled || mode("busy")) return INVALID_OPERATION;
    enabled = 1;
    p->sampler = &enabled;
    return 0;
}
typedef struct { HEAD; void *sampler; } Sampler;
int cuptiPmSamplingDisable(Sampler *p) { CHECK(p, Sampler, sampler); enabled = 0; return 0; }

typedef struct {
    HEAD; void *sampler; size_t image_size; const uint8_t *image; size_t hardware;
    uint64_t interval; int trigger, append;
} SetConfig;
int cuptiPmSamplingSetConfig(SetConfig *p) {
    if (p->size != (mode("old") ? SIZED(SetConfig, trigger) : SIZED(SetConfig, append)))
        return INVALID_PARAMETER;
    if (p->sampler != &enabled || p->image[49] != 9) return INVALID_PARAMETER;
    if (p->trigger == 1 && mode("no-time")) return UNSUPPORTED;
    interval = p->trigger == 1 ? p->interval : p->interval * 2;
    return 0;
}

typedef struct {
    HEAD; void *sampler; const char **names; size_t count; uint32_t samples; size_t image_size;
} DataSize;
int cuptiPmSamplingGetCounterDataSize(DataSize *p) {
    CHECK(p, DataSize, image_size);
    p->image_size = sizeof(Image) + (size_t)p->samples * RECORD_BYTES;
    return 0;
}
typedef struct { HEAD; void *sampler; size_t image_size; Image *image; } ImageInit;
int cuptiPmSamplingCounterDataImageInitialize(ImageInit *p) {
    CHECK(p, ImageInit, image);
    p->image->capacity = (uint32_t)((p->image_size - sizeof(Image)) / RECORD_BYTES);
    p->image->used = 0;
    return 0;
}
int cuptiPmSamplingStart(Sampler *p) {
    CHECK(p, Sampler, sampler);
    begun = now();
    stopped = decoded = 0;
    return 0;
}
int cuptiPmSamplingStop(Sampler *p) {
    CHECK(p, Sampler, sampler);
    if (mode("segv-stop")) raise(SIGSEGV);
    stopped = now();
    return 0;
}

typedef struct {
    HEAD; void *sampler; Image *image; size_t image_size; int reason; uint8_t overflow;
} Decode;
int cuptiPmSamplingDecodeData(Decode *p) {
    CHECK(p, Decode, overflow);
    uint64_t there = ((stopped ? stopped : now()) - begun) / interval;
    if (!p->image->used) p->image->first = decoded;
    uint64_t room = p->image->capacity - p->image->used, count = there - decoded;
    p->reason = count > room ? 1 : 2;
    if (count > room) count = room;
    p->image->used += (uint32_t)count;
    decoded += count;
    p->overflow = mode("overflow");
    return 0;
}
typedef struct { HEAD; const Image *image; size_t image_size, total, populated, completed; } Info;
int cuptiPmSamplingGetCounterDataInfo(Info *p) {
    CHECK(p, Info, completed);
    p->total = p->image->capacity;
    p->populated = p->completed = p->image->used;
    return 0;
}

static uint64_t start_of(const Image *image, size_t index) {
    return begun + (image->first + index) * interval;
}
typedef struct {
    HEAD; void *sampler; const Image *image; size_t image_size, index; uint64_t start, end;
} SampleInfo;
int cuptiPmSamplingCounterDataGetSampleInfo(SampleInfo *p) {
    CHECK(p, SampleInfo, end);
    const char *skew = getenv("LLMPROF_STUB_SKEW_NS");
    if (p->index >= p->image->used) return INVALID_PARAMETER;
    p->start = start_of(p->image, p->index) + (uint64_t)(skew ? atoll(skew) : 0);
    p->end = p->start + interval;
    return 0;
}
typedef struct {
    HEAD; void *host; const Image *image; size_t image_size, index; const char **names;
    size_t count; double *values;
} Evaluate;
int cuptiProfilerHostEvaluateToGpuValues(Evaluate *p) {
    CHECK(p, Evaluate, values);
    if (p->index >= p->image->used || p->count != metric_count) return INVALID_PARAMETER;
    int high = start_of(p->image, p->index) / 10000000u % 2 == 0;
    for (size_t i = 0; i < p->count; i++) {
        double dram = high ? 80.0 : 20.0;
        p->values[i] = strstr(p->names[i], "sm__") ? 50.0
                     : strstr(p->names[i], "dram__read") ? dram / 2 : dram;
    }
    return 0;
}
