/* Which libcupti. Two of them in one process clash, so the program's own comes first. */
#include "recorder.h"

#include <dlfcn.h>
#include <glob.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *file_name(const char *path) {
  const char *slash = path ? strrchr(path, '/') : NULL;
  return slash ? slash + 1 : NULL;
}

static int is_mapped(struct dl_phdr_info *info, size_t size, void *path) {
  (void)size;
  const char *name = file_name(info->dlpi_name);
  if (!name || strncmp(name, "libcupti.so", 11)) return 0;
  return snprintf(path, PATH_ROOM, "%s", info->dlpi_name) < PATH_ROOM;
}

/* Wheels: nvidia/cu13/lib holds both, nvidia/cuda_runtime/lib has cuda_cupti beside it. Toolkits:
 * lib64/libcudart.so and extras/CUPTI/lib64. */
static int is_near(struct dl_phdr_info *info, size_t size, void *path) {
  static const char *const libraries[] = {"libcudart.so", "libcublas.so", "libcublasLt.so",
                                          "libnvrtc.so", "libcudnn.so"};
  static const char *const places[] = {"", "../../cuda_cupti/lib/", "../extras/CUPTI/lib64/",
                                       "../../../extras/CUPTI/lib64/"};
  const char *name = file_name(info->dlpi_name);
  (void)size;
  for (size_t i = 0; name && i < sizeof libraries / sizeof *libraries; i++) {
    if (strncmp(name, libraries[i], strlen(libraries[i]))) continue;
    for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
      char pattern[PATH_ROOM];
      glob_t found;
      int length = snprintf(pattern, sizeof pattern, "%.*s%slibcupti.so*",
                            (int)(name - info->dlpi_name), info->dlpi_name, places[k]);
      if (length >= (int)sizeof pattern || glob(pattern, 0, NULL, &found)) continue;
      int fits = snprintf(path, PATH_ROOM, "%s", found.gl_pathv[0]) < PATH_ROOM;
      globfree(&found);
      if (fits) return 1;
    }
  }
  return 0;
}

static void *try(const char *path, const char *how, char *found) {
  struct link_map *map;
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return NULL;
  if (!dlsym(handle, "cuptiActivityRegisterCallbacks")) {
    dlclose(handle);
    return NULL;
  }
  const char *real = dlinfo(handle, RTLD_DI_LINKMAP, &map) ? path : map->l_name;
  snprintf(found, PATH_ROOM, "%.3900s (%s)", real, how);
  return handle;
}

/* The newest CUDA that the driver serves, as 13000; 0 where it does not say. */
static int driver_version(void) {
  int version = 0;
  int (*get)(int *) = NULL;
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (driver) *(void **)&get = dlsym(driver, "cuDriverGetVersion");
  return get && !get(&version) ? version : 0;
}

/* A libcupti of a newer major release than the driver's cannot attach. */
static void *from_toolkits(int driver, char *found) {
  static const char *const patterns[] = {
      "/usr/local/cuda*/lib64/libcupti.so.1[0-9]",
      "/usr/local/cuda*/extras/CUPTI/lib64/libcupti.so.1[0-9]",
      "/usr/local/cuda*/targets/*-linux/lib/libcupti.so.1[0-9]"};
  void *handle = NULL;
  for (size_t i = 0; !handle && i < sizeof patterns / sizeof *patterns; i++) {
    glob_t paths;
    if (glob(patterns[i], 0, NULL, &paths)) continue;
    for (size_t k = paths.gl_pathc; !handle && k-- > 0;) {
      const char *release = strstr(paths.gl_pathv[k], ".so.");
      if (driver && release && atoi(release + 4) > driver / 1000) continue;
      handle = try(paths.gl_pathv[k], "toolkit", found);
    }
    globfree(&paths);
  }
  return handle;
}

void *find_cupti(const char *fallback, char *found) {
  char path[PATH_ROOM];
  void *handle;
  int driver = driver_version();
  if (dl_iterate_phdr(is_mapped, path) && (handle = try(path, "loaded already", found)))
    return handle;
  if (dl_iterate_phdr(is_near, path) && (handle = try(path, "beside the CUDA runtime", found)))
    return handle;
  if ((!driver || driver >= 13000) && (handle = try("libcupti.so.13", "linker", found)))
    return handle;
  if ((handle = try("libcupti.so.12", "linker", found)) || (handle = from_toolkits(driver, found)))
    return handle;
  return *fallback ? try(fallback, "llmprof's", found) : NULL;
}
