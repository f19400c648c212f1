/* Writes frames of what it reads: u8 kind (0: raw bytes, 1: quoted as JSON), u32 length, bytes. */
#include "../../../llmprof/native/recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

uint64_t monotonic_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int main(int argc, char **argv) {
  unsigned char head[5];
  if (argc != 2 || !spool_open(argv[1])) return 1;
  while (fread(head, 1, sizeof head, stdin) == sizeof head) {
    size_t length = head[1] | head[2] << 8 | head[3] << 16 | (size_t)head[4] << 24;
    char *bytes = malloc(length + 1); /* exactly: a read past the end is seen */
    text_t text = {0};
    if (!bytes || fread(bytes, 1, length, stdin) != length) return 2;
    if (head[0]) {
      put_text(&text, "{");
      put_key(&text, "text");
      put_quoted(&text, bytes, length);
      put_number(&text, "length", (long long)length);
      put_text(&text, "}");
      write_text(FRAME_ERROR, &text);
    } else {
      write_frame(FRAME_RECORDS, bytes, length);
    }
    free(bytes);
  }
  spool_close();
  return 0;
}
