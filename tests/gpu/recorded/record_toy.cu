/* A CUDA program that knows what it does: each step launches 10 + 10 kernels, a graph of 32 nodes,
 * and copies one number to the host. Prints `T NS` (CLOCK_MONOTONIC) after each step.
 *
 *   record_toy END STEPS PAUSE_US      END: return exit _exit term abort segv kill throw exec */
#include <cuda_runtime.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#else
static int nvtxRangePushA(const char *) { return 0; }
static int nvtxRangePop() { return 0; }
#endif

#define CHECK(call)                                                              \
  do {                                                                           \
    cudaError_t code = call;                                                     \
    if (code != cudaSuccess) {                                                   \
      fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(code));              \
      exit(9);                                                                   \
    }                                                                            \
  } while (0)

__global__ void add_one(float *x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] += 1;
}
template <int N> __global__ void multiply(float *x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int k = 0; i < n && k < N; k++) x[i] *= 1.0001f;
}
__global__ void in_graph(float *x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] -= 1;
}

int main(int argc, char **argv) {
  const char *end = argc > 1 ? argv[1] : "return";
  int steps = argc > 2 ? atoi(argv[2]) : 100, pause_us = argc > 3 ? atoi(argv[3]) : 1000;
  const int n = 1 << 18, threads = 256, blocks = n / threads;
  float *x, out;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaMalloc(&x, n * sizeof *x));
  CHECK(cudaMemset(x, 0, n * sizeof *x));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < 32; i++) in_graph<<<blocks, threads, 0, stream>>>(x, n);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&replay, graph, 0));
  for (int s = 0; s < steps; s++) {
    char text[32];
    struct timespec t;
    snprintf(text, sizeof text, "decode %d", s);
    nvtxRangePushA(text);
    for (int i = 0; i < 10; i++) add_one<<<blocks, threads, 0, stream>>>(x, n);
    for (int i = 0; i < 10; i++) multiply<64><<<blocks, threads, 0, stream>>>(x, n);
    CHECK(cudaGraphLaunch(replay, stream));
    CHECK(cudaMemcpyAsync(&out, x, sizeof out, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    clock_gettime(CLOCK_MONOTONIC, &t);
    printf("T %lld\n", (long long)t.tv_sec * 1000000000 + t.tv_nsec);
    fflush(stdout);
    if (pause_us) usleep(pause_us);
    nvtxRangePop();
  }
  if (!strcmp(end, "exit")) exit(7);
  if (!strcmp(end, "_exit")) _exit(3);
  if (!strcmp(end, "term")) raise(SIGTERM);
  if (!strcmp(end, "abort")) abort();
  if (!strcmp(end, "segv")) raise(SIGSEGV);
  if (!strcmp(end, "kill")) raise(SIGKILL);
  if (!strcmp(end, "throw")) throw 1;
  if (!strcmp(end, "exec")) execlp("true", "true", (char *)NULL);
  return 0;
}
