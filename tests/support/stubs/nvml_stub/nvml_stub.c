/* libnvidia-ml.so.1 from a script: the functions that pynvml asks for, with answers from a file.
 *
 * NVML_STUB_SCENARIO names the file, NVML_STUB_CALLS one that gets "function count" lines at each
 * nvmlShutdown. The format is described in __init__.py. Signatures, structs and codes as in nvml.h.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, LOST = 15 };
enum { MAX_GPUS = 8, MAX_KEYS = 64, MAX_VALUES = 256, MAX_CALLS = 64 };

typedef struct {
    char name[64];
    char text[128];
    double values[MAX_VALUES];
    int count, next;
} Key;

typedef struct {
    char function[64];
    int code, after, seen;
} Failure;

typedef struct {
    Key keys[MAX_KEYS];
    int key_count;
    Failure failures[MAX_KEYS];
    int failure_count;
} Table;

typedef struct {
    struct timespec taken;
} Sample;

/* Structs of nvml.h, as far as they are filled here. */
typedef struct { unsigned version; int sensor, value; } Temperature;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned instances[2]; } Process;
typedef struct { char legacy[16]; unsigned numbers[5]; char bus[32]; } PciInfo;
typedef struct { unsigned version, supported; } GpmSupport;
typedef struct { unsigned id; int result; double value; const char *names[3]; } Metric;
typedef struct { unsigned version, count; Sample *first, *second; Metric metrics[]; } MetricsGet;

static Table gpus[MAX_GPUS], driver;
static int gpu_count, references, loaded;
static struct { char function[64]; int count; } calls[MAX_CALLS];
static int call_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void load(void) {
    const char *path = getenv("NVML_STUB_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[4096];
    if (loaded++ || !file) return;
    while (fgets(line, sizeof line, file)) {
        Table *table = &driver;
        char word[64];
        int used = 0, index;
        char *rest = line;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(rest, " gpu %d%n", &index, &used) == 1 && index >= 0 && index < MAX_GPUS) {
            table = &gpus[index];
            if (index >= gpu_count) gpu_count = index + 1;
            rest += used;
        }
        if (sscanf(rest, " %63s%n", word, &used) != 1 || word[0] == '#') continue;
        rest += used + strspn(rest + used, " ");
        if (!strcmp(word, "fail") && table->failure_count < MAX_KEYS) {
            Failure *failure = &table->failures[table->failure_count++];
            sscanf(rest, "%63s %d %d", failure->function, &failure->code, &failure->after);
        } else if (table->key_count < MAX_KEYS) {
            Key *key = &table->keys[table->key_count++];
            char *end;
            snprintf(key->name, sizeof key->name, "%s", word);
            snprintf(key->text, sizeof key->text, "%.127s", rest);
            while (key->count < MAX_VALUES) {
                double value = strtod(rest, &end);
                if (end == rest) break;
                key->values[key->count++] = value;
                rest = end;
            }
        }
    }
    fclose(file);
}

static Key *find(Table *table, const char *name) {
    for (int i = 0; i < table->key_count; i++)
        if (!strcmp(table->keys[i].name, name)) return &table->keys[i];
    return NULL;
}

/* The next value of a series; its last one repeats. */
static int take(Table *table, const char *name, double *value) {
    Key *key = find(table, name);
    if (!key || !key->count) return NOT_SUPPORTED;
    *value = key->values[key->next];
    if (key->next + 1 < key->count) key->next++;
    return OK;
}

static int failing(Table *table, const char *function) {
    for (int i = 0; i < table->failure_count; i++) {
        Failure *failure = &table->failures[i];
        if (!strcmp(failure->function, function) && failure->seen++ >= failure->after)
            return failure->code;
    }
    return OK;
}

/* Counts the call, then: not initialised, lost, told to fail, or fine. */
static int enter(Table *table, const char *function) {
    Key *lost;
    int i = 0;
    while (i < call_count && strcmp(calls[i].function, function)) i++;
    if (i == call_count && call_count < MAX_CALLS)
        snprintf(calls[call_count++].function, sizeof calls[0].function, "%s", function);
    if (i < MAX_CALLS) calls[i].count++;
    if (!references) return UNINITIALIZED;
    if (table != &driver && (table < gpus || table >= gpus + gpu_count)) return INVALID;
    lost = find(table, "lost_after");
    if (lost && lost->count) {
        if (!strcmp(function, "nvmlDeviceGetPowerUsage")) lost->next++;
        if (lost->next > lost->values[0]) return LOST;
    }
    return failing(table, function);
}

#define BEGIN(table) \
    pthread_mutex_lock(&lock); \
    int result = enter((table), __func__)
#define END \
    pthread_mutex_unlock(&lock); \
    return result

#define NUMBER(function, key, type) \
    int function(Table *gpu, type *out) { \
        double value = 0; \
        BEGIN(gpu); \
        if (!result) result = take(gpu, key, &value); \
        if (!result) *out = (type)value; \
        END; \
    }

#define TEXT(function, key) \
    int function(Table *gpu, char *out, unsigned size) { \
        BEGIN(gpu); \
        Key *found = find(gpu, key); \
        if (!result && !found) result = NOT_SUPPORTED; \
        if (!result) snprintf(out, size, "%s", found->text); \
        END; \
    }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    load();
    references++;
    int result = enter(&driver, "nvmlInitWithFlags");
    if (result) references--;
    END;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    BEGIN(&driver);
    const char *path = getenv("NVML_STUB_CALLS");
    FILE *file = path ? fopen(path, "w") : NULL;
    for (int i = 0; file && i < call_count; i++)
        fprintf(file, "%s %d\n", calls[i].function, calls[i].count);
    if (file) fclose(file);
    if (!result) references--;
    END;
}

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "stub error %d", code);
    return text;
}

static int driver_text(const char *key, char *out, unsigned size) {
    Key *found = find(&driver, key);
    if (!found) return NOT_SUPPORTED;
    snprintf(out, size, "%s", found->text);
    return OK;
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    BEGIN(&driver);
    if (!result) result = driver_text("driver", out, size);
    END;
}
int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    BEGIN(&driver);
    if (!result) result = driver_text("nvml", out, size);
    END;
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    double value = 0;
    BEGIN(&driver);
    if (!result) result = take(&driver, "cuda", &value);
    if (!result) *out = (int)value;
    END;
}
int nvmlDeviceGetCount_v2(unsigned *out) {
    BEGIN(&driver);
    if (!result) *out = (unsigned)gpu_count;
    END;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Table **out) {
    BEGIN(&driver);
    if (!result && index >= (unsigned)gpu_count) result = INVALID;
    if (!result) result = failing(&gpus[index], __func__);
    if (!result) *out = &gpus[index];
    END;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Table **out) {
    BEGIN(&driver);
    if (!result) result = NOT_FOUND;
    for (int i = 0; i < gpu_count && result == NOT_FOUND; i++) {
        Key *key = find(&gpus[i], "uuid");
        if (key && !strcmp(key->text, uuid)) { *out = &gpus[i]; result = OK; }
    }
    END;
}

TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
NUMBER(nvmlDeviceGetMemoryBusWidth, "bus_width", unsigned)
NUMBER(nvmlDeviceGetPowerUsage, "power", unsigned)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit", unsigned)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, "energy", unsigned long long)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, "reasons", unsigned long long)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, "reasons", unsigned long long)

static int clock_of(Table *gpu, int type, const char *sm, const char *memory, unsigned *out) {
    double value = 0;
    int result = take(gpu, type == 1 ? sm : memory, &value); /* NVML_CLOCK_SM 1, _MEM 2 */
    if (!result) *out = (unsigned)value;
    return result;
}
int nvmlDeviceGetClockInfo(Table *gpu, int type, unsigned *out) {
    BEGIN(gpu);
    if (!result) result = clock_of(gpu, type, "sm_clock", "mem_clock", out);
    END;
}
int nvmlDeviceGetMaxClockInfo(Table *gpu, int type, unsigned *out) {
    BEGIN(gpu);
    if (!result) result = clock_of(gpu, type, "max_sm_clock", "max_mem_clock", out);
    END;
}
int nvmlDeviceGetTemperatureV(Table *gpu, Temperature *out) {
    double value = 0;
    BEGIN(gpu);
    if (!result) result = take(gpu, "temperature", &value);
    if (!result) out->value = (int)value;
    END;
}
int nvmlDeviceGetTemperature(Table *gpu, int sensor, unsigned *out) {
    double value = 0;
    (void)sensor;
    BEGIN(gpu);
    if (!result) result = take(gpu, "temperature", &value);
    if (!result) *out = (unsigned)value;
    END;
}
int nvmlDeviceGetUtilizationRates(Table *gpu, Utilization *out) {
    double compute = 0, memory = 0;
    BEGIN(gpu);
    if (!result) result = take(gpu, "gpu_util", &compute);
    if (!result) result = take(gpu, "mem_util", &memory);
    if (!result) { out->gpu = (unsigned)compute; out->memory = (unsigned)memory; }
    END;
}
int nvmlDeviceGetMemoryInfo(Table *gpu, Memory *out) {
    double total = 0, used = 0;
    BEGIN(gpu);
    if (!result) result = take(gpu, "memory_total_mib", &total);
    if (!result) result = take(gpu, "memory_used_mib", &used);
    if (!result) {
        out->total = (unsigned long long)(total * 1048576);
        out->used = (unsigned long long)(used * 1048576);
        out->free = out->total - out->used;
    }
    END;
}
/* "process PID…": what computes on the device. */
int nvmlDeviceGetComputeRunningProcesses_v3(Table *gpu, unsigned *count, Process *out) {
    BEGIN(gpu);
    Key *key = find(gpu, "process");
    unsigned room = *count;
    *count = key ? (unsigned)key->count : 0;
    if (!result && *count > room) result = INSUFFICIENT_SIZE;
    for (unsigned i = 0; !result && i < *count; i++) {
        memset(&out[i], 0, sizeof out[i]);
        out[i].pid = (unsigned)key->values[i];
    }
    END;
}
int nvmlDeviceGetPciInfo_v3(Table *gpu, PciInfo *out) {
    BEGIN(gpu);
    Key *key = find(gpu, "pci");
    if (!result && !key) result = NOT_SUPPORTED;
    if (!result) snprintf(out->bus, sizeof out->bus, "%.31s", key->text);
    END;
}
int nvmlDeviceGetCudaComputeCapability(Table *gpu, int *major, int *minor) {
    BEGIN(gpu);
    Key *key = find(gpu, "compute_capability");
    if (!result && (!key || key->count < 2)) result = NOT_SUPPORTED;
    if (!result) { *major = (int)key->values[0]; *minor = (int)key->values[1]; }
    END;
}
int nvmlDeviceGetAttributes_v2(Table *gpu, unsigned *multiprocessors) { /* first of the struct */
    double value = 0;
    BEGIN(gpu);
    if (!result) result = take(gpu, "sm_count", &value);
    if (!result) *multiprocessors = (unsigned)value;
    END;
}
int nvmlDeviceGetNumGpuCores(Table *gpu, unsigned *cores) {
    double value = 0;
    BEGIN(gpu);
    if (!result) result = take(gpu, "cores", &value);
    if (!result) *cores = (unsigned)value;
    END;
}
int nvmlDeviceGetMigMode(Table *gpu, unsigned *current, unsigned *pending) {
    double value = 0;
    BEGIN(gpu);
    if (!result) result = take(gpu, "mig", &value);
    if (!result) *current = *pending = (unsigned)value;
    END;
}

/* nvlinks of the scenario are active; NVML refuses numbers from 18 on, as on an H100. */
int nvmlDeviceGetNvLinkState(Table *gpu, unsigned link, unsigned *active) {
    double value = 0;
    BEGIN(gpu);
    if (!result) result = take(gpu, "nvlinks", &value);
    if (!result && link >= 18) result = INVALID;
    if (!result) *active = link < value;
    END;
}
int nvmlDeviceGetNvLinkVersion(Table *gpu, unsigned link, unsigned *version) {
    double value = 0;
    (void)link;
    BEGIN(gpu);
    if (!result) result = take(gpu, "nvlink_version", &value);
    if (!result) *version = (unsigned)value;
    END;
}
typedef struct {
    unsigned id, scope;
    long long timestamp, latency;
    int type, status;
    union { double d; unsigned u; unsigned long long ull; } value;
} FieldValue;
int nvmlDeviceGetFieldValues(Table *gpu, int count, FieldValue *out) {
    double value = 0;
    BEGIN(gpu);
    for (int i = 0; !result && i < count; i++) {
        const char *key = out[i].id == 164 ? "nvlink_mbps" : out[i].id == 90 ? "nvlink_common_mbps" : "";
        out[i].status = take(gpu, key, &value);
        out[i].value.u = (unsigned)value;
    }
    END;
}

/* GPM. Two samples closer than gpm_refresh_ms give NaN for the DRAM and 0 for the rest. */
int nvmlGpmQueryDeviceSupport(Table *gpu, GpmSupport *out) {
    BEGIN(gpu);
    if (!result) out->supported = find(gpu, "gpm_dram_bw") != NULL;
    END;
}
int nvmlGpmSampleAlloc(Sample **out) {
    BEGIN(&driver);
    if (!result) *out = calloc(1, sizeof(Sample));
    END;
}
int nvmlGpmSampleFree(Sample *sample) {
    BEGIN(&driver);
    free(sample);
    END;
}
static Table *sampled; /* nvmlGpmMetricsGet is given no device: that of the last sample */
int nvmlGpmSampleGet(Table *gpu, Sample *sample) {
    BEGIN(gpu);
    if (!result) { clock_gettime(CLOCK_MONOTONIC, &sample->taken); sampled = gpu; }
    END;
}
int nvmlGpmMetricsGet(MetricsGet *request) {
    BEGIN(&driver);
    if (!result && !sampled) result = INVALID;
    if (!result) {
        struct timespec a = request->first->taken, b = request->second->taken;
        Key *refresh = find(sampled, "gpm_refresh_ms");
        double apart = (b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6;
        int early = apart < (refresh ? refresh->values[0] : 100);
        for (unsigned i = 0; i < request->count; i++) {
            Metric *metric = &request->metrics[i];
            const char *key = metric->id == 10  ? "gpm_dram_bw"
                              : metric->id == 2 ? "gpm_sm_util"
                                                : "gpm_sm_occupancy";
            metric->result = OK;
            if (early) metric->value = metric->id == 10 ? NAN : 0;
            else metric->result = take(sampled, key, &metric->value);
        }
    }
    END;
}
