/* Frames (see llmprof/tracers/cupti/spool.py), the JSON inside them, and the control page. */
#include "recorder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int fd = -1;
static char spool_path[PATH_ROOM];
static uint64_t size, most; /* bytes written; RLIMIT_FSIZE: beyond it a write raises SIGXFSZ */
static struct control *control;

/* On the shared page: llmprof would else look for the cause in the program. */
static void say_lost(int why) {
  if (!control || __atomic_fetch_add(&control->lost_spools, 1, __ATOMIC_RELAXED)) return;
  control->lost_errno = why;
  __atomic_store_n(&control->lost_ns, monotonic_ns(), __ATOMIC_RELEASE);
}

int spool_open(const char *path) {
  struct rlimit limit;
  int new = open(path, O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (new < 0) {
    say_lost(errno);
    return 0;
  }
  /* Daemons close the low descriptors, and some programs expect the next one to be small. */
  int high = fcntl(new, F_DUPFD_CLOEXEC, 500);
  if (high < 0) high = fcntl(new, F_DUPFD_CLOEXEC, 64);
  if (high >= 0) close(new), new = high;
  most = !getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur != RLIM_INFINITY
       ? limit.rlim_cur : UINT64_MAX;
  pthread_mutex_lock(&lock);
  fd = new, size = 0;
  snprintf(spool_path, sizeof spool_path, "%s", path);
  pthread_mutex_unlock(&lock);
  return 1;
}

int spool_is_open(void) { return __atomic_load_n(&fd, __ATOMIC_RELAXED) >= 0; }

void spool_close(void) {
  pthread_mutex_lock(&lock);
  if (fd >= 0) close(fd);
  fd = -1;
  pthread_mutex_unlock(&lock);
}

/* llmprof is gone and nobody will read this: leave nothing behind. */
void spool_abandon(const char *folder) {
  char path[PATH_ROOM];
  spool_close();
  unlink(spool_path);
  if (snprintf(path, sizeof path, "%s/control", folder) < (int)sizeof path) unlink(path);
  rmdir(folder); /* the last one succeeds */
}

void spool_forget(void) {
  pthread_mutex_init(&lock, NULL); /* it may have been held by a thread that is not here */
  if (fd >= 0) close(fd);
  fd = -1;
}

/* A full disk, a quota, a limit: cut the torn frame off, say so on the shared page, never try
 * again. `lock` is held. */
static void give_up(int why) {
  if (ftruncate(fd, (off_t)size)) { /* the reader knows torn frames */ }
  close(fd);
  fd = -1;
  say_lost(why);
}

void write_frame(uint16_t kind, const void *payload, uint64_t length) {
  static const char zeros[8];
  struct { char magic[4]; uint16_t kind, version; uint64_t length; } head =
      {{'L', 'P', 'S', 'P'}, kind, 1, length};
  size_t padding = (size_t)(-length & 7), total = sizeof head + length + padding, left = total;
  struct iovec parts[3] = {{&head, sizeof head}, {(void *)(uintptr_t)payload, length},
                           {(void *)(uintptr_t)zeros, padding}};
  int i = 0, saved = errno;
  pthread_mutex_lock(&lock);
  if (fd >= 0 && total > most - size) give_up(EFBIG);
  while (fd >= 0 && left) {
    ssize_t done = writev(fd, parts + i, 3 - i);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      give_up(done ? errno : EIO);
      break;
    }
    left -= (size_t)done;
    while (i < 3 && (size_t)done >= parts[i].iov_len) done -= (ssize_t)parts[i++].iov_len;
    if (i < 3) {
      parts[i].iov_base = (char *)parts[i].iov_base + done;
      parts[i].iov_len -= (size_t)done;
    }
  }
  if (fd >= 0) size += total;
  pthread_mutex_unlock(&lock);
  errno = saved; /* the callbacks run inside the program's own calls */
}

/* -- JSON -------------------------------------------------------------------------------------- */

void put_bytes(text_t *text, const char *bytes, size_t length) {
  if (text->failed || !length) return;
  if (text->length + length > text->room) {
    size_t room = (text->length + length) * 2;
    char *grown = realloc(text->at, room);
    if (!grown) {
      text->failed = 1;
      return;
    }
    text->at = grown, text->room = room;
  }
  memcpy(text->at + text->length, bytes, length);
  text->length += length;
}

void put_text(text_t *text, const char *string) { put_bytes(text, string, strlen(string)); }

/* Bytes of the UTF-8 sequence at `s`; 0 where there is none (RFC 3629: no overlong forms, no
 * surrogates, nothing above U+10FFFF). */
static size_t utf8(const unsigned char *s, size_t left) {
  if (s[0] < 0xC2 || s[0] > 0xF4) return 0;
  size_t n = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
  if (left < n) return 0;
  for (size_t i = 1; i < n; i++)
    if ((s[i] & 0xC0) != 0x80) return 0;
  if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
      (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
    return 0;
  return n;
}

void put_quoted(text_t *text, const char *bytes, size_t length) {
  put_text(text, "\"");
  for (size_t i = 0; i < length;) {
    unsigned char c = (unsigned char)bytes[i];
    size_t n = c < 0x80 ? 1 : utf8((const unsigned char *)bytes + i, length - i);
    if (!n) {
      put_text(text, "\\ufffd"), i++;
    } else if (c < 0x20 || c == '"' || c == '\\' || c == 0x7F) {
      char escaped[8];
      snprintf(escaped, sizeof escaped, "\\u%04x", c);
      put_text(text, escaped), i++;
    } else {
      put_bytes(text, bytes + i, n), i += n;
    }
  }
  put_text(text, "\"");
}

/* `"key":` with a comma where something stands before it. */
void put_key(text_t *text, const char *key) {
  char last = text->length && !text->failed ? text->at[text->length - 1] : '{';
  if (last != '{' && last != '[') put_text(text, ",");
  put_quoted(text, key, strlen(key));
  put_text(text, ":");
}

void put_number(text_t *text, const char *key, long long value) {
  char digits[32];
  put_key(text, key);
  snprintf(digits, sizeof digits, "%lld", value);
  put_text(text, digits);
}

void put_string(text_t *text, const char *key, const char *string) {
  put_key(text, key);
  put_quoted(text, string, strlen(string));
}

void write_text(uint16_t kind, text_t *text) {
  if (!text->failed) write_frame(kind, text->at, text->length);
  free_text(text);
}

void free_text(text_t *text) {
  free(text->at);
  *text = (text_t){0};
}

void write_error(const char *what, long code, const char *advice) {
  text_t text = {0};
  put_text(&text, "{");
  put_string(&text, "what", what);
  put_number(&text, "code", code);
  put_string(&text, "advice", advice);
  put_number(&text, "monotonic_ns", (long long)monotonic_ns());
  put_text(&text, "}");
  write_text(FRAME_ERROR, &text);
}

/* -- the control page -------------------------------------------------------------------------- */

void control_map(const char *folder) {
  char path[PATH_ROOM];
  struct stat facts;
  if (control || snprintf(path, sizeof path, "%s/control", folder) >= (int)sizeof path) return;
  int file = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0) return;
  if (!fstat(file, &facts) && facts.st_size >= (off_t)sizeof(struct control)) {
    void *page = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) control = page;
  }
  close(file);
}

/* llmprof holds a lock on the control page as long as it lives: no process id to be reused, and the
 * same inside a container. 1: it is gone. */
int control_is_orphan(const char *folder) {
  char path[PATH_ROOM];
  if (!control || snprintf(path, sizeof path, "%s/control", folder) >= (int)sizeof path) return 0;
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0) return errno == ENOENT;
  int gone = !flock(file, LOCK_SH | LOCK_NB);
  close(file);
  return gone;
}

uint32_t control_wanted(void) {
  return control ? __atomic_load_n(&control->wanted, __ATOMIC_RELAXED)
                 : WANT_ACTIVITY | WANT_RANGES;
}
