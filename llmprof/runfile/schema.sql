-- The run file: the SQLite export schema of Nsight Systems (3.25, as nsys 2026.2 writes it), so that
-- `nsys stats FILE.sqlite` works on it, and the LLMPROF_* tables.
--
-- Times are ns since the start of the run (LLMPROF_RUN.t0_ns on CLOCK_MONOTONIC). As in a real export,
-- an nsys table is created with its first row and there is no index.
-- One statement ends with ";" at the end of a line; llmprof.runfile.schema relies on it.

CREATE TABLE StringIds (
  id INTEGER NOT NULL PRIMARY KEY,
  value TEXT NOT NULL
);
CREATE TABLE META_DATA_EXPORT (
  name TEXT NOT NULL,
  value TEXT
);
CREATE TABLE META_DATA_CAPTURE (
  name TEXT NOT NULL,
  value TEXT
);
CREATE TABLE TARGET_INFO_SESSION_START_TIME (
  utcEpochNs INTEGER,
  utcTime TEXT,
  localTime TEXT,
  systemClockNs INTEGER
);
CREATE TABLE ANALYSIS_DETAILS (
  globalVid INTEGER NOT NULL,
  duration INTEGER NOT NULL,
  startTime INTEGER NOT NULL,
  stopTime INTEGER NOT NULL
);
CREATE TABLE PROCESSES (
  globalPid INTEGER,
  pid INTEGER,
  name TEXT
);
CREATE TABLE ThreadNames (
  nameId INTEGER NOT NULL,
  priority INTEGER,
  globalTid INTEGER
);
CREATE TABLE NVTX_EVENTS (
  start INTEGER NOT NULL,
  "end" INTEGER,
  eventType INTEGER NOT NULL,
  rangeId INTEGER,
  category INTEGER,
  color INTEGER,
  "text" TEXT,
  globalTid INTEGER,
  endGlobalTid INTEGER,
  textId INTEGER,
  domainId INTEGER,
  uint64Value INTEGER,
  int64Value INTEGER,
  doubleValue REAL,
  uint32Value INTEGER,
  int32Value INTEGER,
  floatValue REAL,
  jsonTextId INTEGER,
  jsonText TEXT,
  binaryData TEXT
);
CREATE TABLE TARGET_INFO_GPU (
  vmId INTEGER NOT NULL,
  id INTEGER NOT NULL,
  name TEXT,
  busLocation TEXT,
  isDiscrete INTEGER,
  l2CacheSize INTEGER,
  totalMemory INTEGER,
  memoryBandwidth INTEGER,
  clockRate INTEGER,
  smCount INTEGER,
  pwGpuId INTEGER,
  uuid TEXT,
  luid INTEGER,
  chipName TEXT,
  cuDevice INTEGER,
  ctxswDevPath TEXT,
  ctrlDevPath TEXT,
  revision INTEGER,
  nodeMask INTEGER,
  constantMemory INTEGER,
  maxIPC INTEGER,
  maxRegistersPerBlock INTEGER,
  maxShmemPerBlock INTEGER,
  maxShmemPerBlockOptin INTEGER,
  maxShmemPerSm INTEGER,
  maxRegistersPerSm INTEGER,
  threadsPerWarp INTEGER,
  asyncEngines INTEGER,
  maxWarpsPerSm INTEGER,
  maxBlocksPerSm INTEGER,
  maxThreadsPerBlock INTEGER,
  maxBlockDimX INTEGER,
  maxBlockDimY INTEGER,
  maxBlockDimZ INTEGER,
  maxGridDimX INTEGER,
  maxGridDimY INTEGER,
  maxGridDimZ INTEGER,
  computeMajor INTEGER,
  computeMinor INTEGER,
  smMajor INTEGER,
  smMinor INTEGER
);
CREATE TABLE TARGET_INFO_CUDA_DEVICE (
  gpuId INTEGER,
  cudaId INTEGER NOT NULL,
  pid INTEGER NOT NULL,
  uuid TEXT,
  numMultiprocessors INTEGER
);
CREATE TABLE TARGET_INFO_CUDA_CONTEXT_INFO (
  nullStreamId INTEGER NOT NULL,
  hwId INTEGER NOT NULL,
  vmId INTEGER NOT NULL,
  processId INTEGER NOT NULL,
  deviceId INTEGER NOT NULL,
  contextId INTEGER NOT NULL,
  parentContextId INTEGER,
  isGreenContext INTEGER,
  numMultiprocessors INTEGER
);
CREATE TABLE TARGET_INFO_CUDA_STREAM (
  streamId INTEGER NOT NULL,
  hwId INTEGER NOT NULL,
  vmId INTEGER NOT NULL,
  processId INTEGER NOT NULL,
  contextId INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  flag INTEGER NOT NULL
);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (
  start INTEGER NOT NULL,
  "end" INTEGER NOT NULL,
  deviceId INTEGER NOT NULL,
  contextId INTEGER NOT NULL,
  greenContextId INTEGER,
  streamId INTEGER NOT NULL,
  correlationId INTEGER,
  globalPid INTEGER,
  demangledName INTEGER NOT NULL,
  shortName INTEGER NOT NULL,
  mangledName INTEGER,
  launchType INTEGER,
  cacheConfig INTEGER,
  registersPerThread INTEGER NOT NULL,
  gridX INTEGER NOT NULL,
  gridY INTEGER NOT NULL,
  gridZ INTEGER NOT NULL,
  blockX INTEGER NOT NULL,
  blockY INTEGER NOT NULL,
  blockZ INTEGER NOT NULL,
  staticSharedMemory INTEGER NOT NULL,
  dynamicSharedMemory INTEGER NOT NULL,
  localMemoryPerThread INTEGER NOT NULL,
  localMemoryTotal INTEGER NOT NULL,
  gridId INTEGER NOT NULL,
  sharedMemoryExecuted INTEGER,
  graphNodeId INTEGER,
  sharedMemoryLimitConfig INTEGER,
  graphId INTEGER,
  collectiveBytes INTEGER -- llmprof's own: of a collective, as nccl-tests count them
);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (
  start INTEGER NOT NULL,
  "end" INTEGER NOT NULL,
  eventClass INTEGER NOT NULL,
  globalTid INTEGER,
  correlationId INTEGER,
  nameId INTEGER NOT NULL,
  returnValue INTEGER NOT NULL,
  callchainId INTEGER
);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (
  start INTEGER NOT NULL,
  "end" INTEGER NOT NULL,
  deviceId INTEGER NOT NULL,
  contextId INTEGER NOT NULL,
  greenContextId INTEGER,
  streamId INTEGER NOT NULL,
  correlationId INTEGER,
  globalPid INTEGER,
  bytes INTEGER NOT NULL,
  copyKind INTEGER NOT NULL,
  deprecatedSrcId INTEGER,
  srcKind INTEGER,
  dstKind INTEGER,
  srcDeviceId INTEGER,
  srcContextId INTEGER,
  dstDeviceId INTEGER,
  dstContextId INTEGER,
  migrationCause INTEGER,
  graphNodeId INTEGER,
  virtualAddress INTEGER,
  copyCount INTEGER
);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (
  start INTEGER NOT NULL,
  "end" INTEGER NOT NULL,
  deviceId INTEGER NOT NULL,
  contextId INTEGER NOT NULL,
  greenContextId INTEGER,
  streamId INTEGER NOT NULL,
  correlationId INTEGER,
  globalPid INTEGER,
  value INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  graphNodeId INTEGER,
  memKind INTEGER
);
CREATE TABLE CUPTI_ACTIVITY_KIND_SYNCHRONIZATION (
  start INTEGER NOT NULL,
  "end" INTEGER NOT NULL,
  deviceId INTEGER NOT NULL,
  contextId INTEGER NOT NULL,
  greenContextId INTEGER,
  streamId INTEGER NOT NULL,
  correlationId INTEGER,
  globalPid INTEGER,
  deprecatedSyncType INTEGER,
  syncType INTEGER NOT NULL,
  eventId INTEGER NOT NULL,
  eventSyncId INTEGER
);
-- One row a thread and sample; of py-spy cpuCycles is not counted (0), threadState not known.
CREATE TABLE COMPOSITE_EVENTS (
  id INTEGER NOT NULL PRIMARY KEY,
  start INTEGER NOT NULL,
  cpu INTEGER,
  threadState INTEGER,
  globalTid INTEGER,
  cpuCycles INTEGER NOT NULL
);
-- symbol is "function (file:line)"; LLMPROF_HOST_FRAME has the parts.
CREATE TABLE SAMPLING_CALLCHAINS (
  id INTEGER NOT NULL,
  symbol INTEGER NOT NULL,
  module INTEGER NOT NULL,
  kernelMode INTEGER,
  thumbCode INTEGER,
  unresolved INTEGER,
  specialEntry INTEGER,
  originalIP INTEGER,
  unwindMethod INTEGER,
  stackDepth INTEGER NOT NULL,
  PRIMARY KEY (id, stackDepth)
);
CREATE TABLE PROFILER_OVERHEAD (
  start INTEGER NOT NULL,
  "end" INTEGER NOT NULL,
  globalTid INTEGER,
  nameId INTEGER NOT NULL,
  overheadType INTEGER NOT NULL
);
CREATE TABLE GENERIC_EVENT_SOURCES (
  sourceId INTEGER NOT NULL PRIMARY KEY,
  data TEXT NOT NULL
);
CREATE TABLE GENERIC_EVENT_TYPES (
  typeId INTEGER NOT NULL PRIMARY KEY,
  sourceId INTEGER NOT NULL,
  data TEXT NOT NULL
);
CREATE TABLE TARGET_INFO_GPU_METRICS (
  typeId INTEGER NOT NULL,
  sourceId INTEGER NOT NULL,
  typeName TEXT NOT NULL,
  metricId INTEGER NOT NULL,
  metricName TEXT NOT NULL
);
CREATE TABLE GPU_METRICS (
  timestamp INTEGER,
  typeId INTEGER NOT NULL,
  metricId INTEGER NOT NULL,
  value INTEGER NOT NULL
);
CREATE TABLE OSRT_API (
  start INTEGER NOT NULL,
  "end" INTEGER NOT NULL,
  eventClass INTEGER NOT NULL,
  globalTid INTEGER,
  nameId INTEGER NOT NULL,
  returnValue INTEGER NOT NULL,
  nestingLevel INTEGER,
  callchainId INTEGER NOT NULL
);
CREATE TABLE DIAGNOSTIC_EVENT (
  timestamp INTEGER NOT NULL,
  timestampType INTEGER NOT NULL,
  source INTEGER NOT NULL,
  severity INTEGER NOT NULL,
  "text" TEXT NOT NULL,
  globalPid INTEGER
);
CREATE TABLE ENUM_NSYS_EVENT_TYPE (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_NSYS_EVENT_TYPE VALUES
  (33, 'NvtxCategory', 'NvtxCategory'),
  (34, 'NvtxMark', 'NvtxMark'),
  (39, 'NvtxThread', 'NvtxThread'),
  (59, 'NvtxPushPopRange', 'NvtxPushPopRange'),
  (60, 'NvtxStartEndRange', 'NvtxStartEndRange'),
  (75, 'NvtxDomainCreate', 'NvtxDomainCreate'),
  (76, 'NvtxDomainDestroy', 'NvtxDomainDestroy');
CREATE TABLE ENUM_NSYS_EVENT_CLASS (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_NSYS_EVENT_CLASS VALUES
  (0, 'TRACE_PROCESS_EVENT_CUDA_RUNTIME', 'TRACE_PROCESS_EVENT_CUDA_RUNTIME'),
  (1, 'TRACE_PROCESS_EVENT_CUDA_DRIVER', 'TRACE_PROCESS_EVENT_CUDA_DRIVER'),
  (27, 'TRACE_PROCESS_EVENT_OS_RUNTIME', 'TRACE_PROCESS_EVENT_OS_RUNTIME');
CREATE TABLE ENUM_CUDA_MEMCPY_OPER (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_CUDA_MEMCPY_OPER VALUES
  (0, 'Unknown', 'Unknown'),
  (1, 'Host-to-Device', 'Host-to-Device'),
  (2, 'Device-to-Host', 'Device-to-Host'),
  (8, 'Device-to-Device', 'Device-to-Device'),
  (10, 'Peer-to-Peer', 'Peer-to-Peer');
CREATE TABLE ENUM_CUDA_MEM_KIND (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_CUDA_MEM_KIND VALUES
  (0, 'Pageable', 'Pageable'),
  (1, 'Pinned', 'Pinned'),
  (2, 'Device', 'Device'),
  (3, 'Array', 'Array'),
  (4, 'Managed', 'Managed'),
  (7, 'Unknown', 'Unknown');
CREATE TABLE ENUM_CUPTI_SYNC_TYPE (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_CUPTI_SYNC_TYPE VALUES
  (0, 'Unknown', 'Unknown'),
  (1, 'Event sync', 'Event sync'),
  (2, 'Stream wait sync', 'Stream wait sync'),
  (3, 'Stream sync', 'Stream sync'),
  (4, 'Context sync', 'Context sync');
CREATE TABLE ENUM_CUDA_KERNEL_LAUNCH_TYPE (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_CUDA_KERNEL_LAUNCH_TYPE VALUES
  (0, 'Unknown', 'Unknown'),
  (1, 'Regular', 'Regular'),
  (2, 'Coop Single Device', 'Coop Single Device'),
  (3, 'Coop Multi Device', 'Coop Multi Device');

CREATE TABLE ENUM_SAMPLING_THREAD_STATE (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_SAMPLING_THREAD_STATE VALUES
  (0, 'Unknown', 'Unknown'),
  (1, 'Running', 'Running'),
  (6, 'Unscheduled', 'Unscheduled');
CREATE TABLE ENUM_STACK_UNWIND_METHOD (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_STACK_UNWIND_METHOD VALUES
  (0, 'Unknown', 'Unknown'),
  (1, 'Frame pointer', 'Frame pointer'),
  (7, 'DWARF DF', 'DWARF DF');

-- What follows is llmprof's own. Columns are the fields of the record of the same name in
-- llmprof.records; dict, list and nested records are JSON text. NULL: not available, and
-- LLMPROF_MISSING may say why.

-- One row: records.RunInfo.
CREATE TABLE LLMPROF_RUN (
  t0_ns INTEGER NOT NULL,
  t0_utc_ns INTEGER NOT NULL,
  tool_version TEXT NOT NULL,
  tool_commit TEXT,
  command TEXT NOT NULL,
  workload TEXT NOT NULL,
  environment TEXT NOT NULL,
  trace_level TEXT NOT NULL,
  state TEXT NOT NULL,
  schedule TEXT NOT NULL,
  message TEXT NOT NULL,
  source TEXT NOT NULL DEFAULT 'driven'
);
CREATE TABLE LLMPROF_ENGINE (
  engine_id INTEGER NOT NULL PRIMARY KEY,
  label TEXT NOT NULL,
  name TEXT NOT NULL,
  python TEXT NOT NULL,
  options TEXT NOT NULL,
  state TEXT NOT NULL,
  failure_kind TEXT,
  failure TEXT,
  info TEXT,
  pid INTEGER,
  traced_pid INTEGER,
  traced_ranks TEXT,
  load_ns INTEGER,
  load_shared INTEGER NOT NULL DEFAULT 0,
  load_note TEXT NOT NULL DEFAULT '',
  warmup_steps INTEGER,
  warmup_stable INTEGER,
  "text" TEXT
);
CREATE TABLE LLMPROF_ROUND (
  round_id INTEGER NOT NULL PRIMARY KEY,
  engine_id INTEGER NOT NULL,
  pass_name TEXT NOT NULL,
  "index" INTEGER NOT NULL,
  pid INTEGER NOT NULL,
  tid INTEGER NOT NULL,
  start_ns INTEGER NOT NULL,
  prefill_start_ns INTEGER NOT NULL,
  end_ns INTEGER NOT NULL,
  complete INTEGER NOT NULL,
  synchronous INTEGER NOT NULL,
  tokens TEXT NOT NULL,
  energy_mj TEXT,
  cpu TEXT,
  prefill_energy_mj INTEGER
);
-- Step 0 is prefill; the end of step i is RoundRecord.stamps_ns[i] and the start of step i + 1.
CREATE TABLE LLMPROF_STEP (
  round_id INTEGER NOT NULL,
  step INTEGER NOT NULL,
  start_ns INTEGER NOT NULL,
  end_ns INTEGER NOT NULL,
  PRIMARY KEY (round_id, step)
) WITHOUT ROWID;
CREATE TABLE LLMPROF_GPU_DEVICE (
  "index" INTEGER NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  uuid TEXT NOT NULL,
  pci_bus_id TEXT,
  memory_total_mib REAL,
  bus_width_bits INTEGER,
  max_sm_clock_mhz INTEGER,
  max_mem_clock_mhz INTEGER,
  power_limit_w REAL,
  sm_count INTEGER,
  compute_capability TEXT,
  nvlink_gb_s REAL
);
CREATE TABLE LLMPROF_GPU_SAMPLE (
  timestamp_ns INTEGER NOT NULL,
  device INTEGER NOT NULL,
  sm_clock_mhz INTEGER,
  mem_clock_mhz INTEGER,
  gpu_util_pct REAL,
  mem_util_pct REAL,
  power_w REAL,
  temperature_c INTEGER,
  throttle_mask INTEGER,
  memory_used_mib REAL,
  gpm_dram_bw_pct REAL,
  gpm_sm_util_pct REAL,
  gpm_sm_occupancy_pct REAL
);
CREATE TABLE LLMPROF_MISSING (
  scope TEXT NOT NULL,
  name TEXT NOT NULL,
  reason TEXT NOT NULL
);
CREATE TABLE LLMPROF_WARNING (
  scope TEXT NOT NULL,
  "text" TEXT NOT NULL
);
-- monotonic_ns is since the start of the run; wall_ns and cupti_ns are as they were read.
CREATE TABLE LLMPROF_CLOCK (
  engine_id INTEGER NOT NULL,
  round_id INTEGER,
  "where" TEXT NOT NULL,
  monotonic_ns INTEGER NOT NULL,
  wall_ns INTEGER NOT NULL,
  cupti_ns INTEGER,
  error_ns INTEGER NOT NULL
);
-- PM samples of a round of pass 'sampled'; times are since the start of the run.
CREATE TABLE LLMPROF_PM_ROUND (
  round_id INTEGER NOT NULL PRIMARY KEY,
  device INTEGER NOT NULL,
  interval_ns INTEGER NOT NULL,
  clock TEXT NOT NULL,
  clock_error_ns INTEGER,
  dropped INTEGER NOT NULL,
  overflow INTEGER NOT NULL
);
CREATE TABLE LLMPROF_PM_SAMPLE (
  round_id INTEGER NOT NULL,
  start INTEGER NOT NULL,
  "end" INTEGER NOT NULL,
  dram_pct REAL,
  dram_read_pct REAL,
  sm_active_pct REAL,
  dram_write_pct REAL,
  l2_pct REAL,
  l2_hit_pct REAL,
  tensor_pct REAL
);
-- Bandwidth of an engine's kernels as it was fitted to its sampled rounds (analysis.bandwidth.kept);
-- a reader of another version fits again.
CREATE TABLE LLMPROF_DRAM_FIT (
  engine_id INTEGER NOT NULL PRIMARY KEY,
  version INTEGER NOT NULL,
  "document" TEXT NOT NULL
);
-- Tail of a worker's stdout and stderr.
CREATE TABLE LLMPROF_LOG (
  label TEXT NOT NULL PRIMARY KEY,
  "text" TEXT NOT NULL
);
-- How the host stacks of a traced round were sampled; first_ns and last_ns are since the start of
-- the run.
CREATE TABLE LLMPROF_HOST_ROUND (
  round_id INTEGER NOT NULL PRIMARY KEY,
  rate_hz INTEGER NOT NULL,
  native INTEGER NOT NULL,
  blocking INTEGER NOT NULL,
  samples INTEGER NOT NULL,
  undated INTEGER NOT NULL,
  errors INTEGER NOT NULL,
  error_ns INTEGER NOT NULL,
  tick_ns INTEGER NOT NULL,
  first_ns INTEGER NOT NULL,
  last_ns INTEGER NOT NULL,
  cpu_wall_ns INTEGER NOT NULL,
  cpu_ns TEXT NOT NULL,
  threads TEXT NOT NULL
);
-- frame_id is SAMPLING_CALLCHAINS.symbol.
CREATE TABLE LLMPROF_HOST_FRAME (
  frame_id INTEGER NOT NULL PRIMARY KEY,
  function TEXT NOT NULL,
  file TEXT NOT NULL,
  line INTEGER NOT NULL,
  source TEXT NOT NULL
);
CREATE TABLE LLMPROF_PROCESS (
  process INTEGER NOT NULL PRIMARY KEY,
  engine_id INTEGER,
  pid INTEGER NOT NULL,
  parent INTEGER NOT NULL,
  label TEXT NOT NULL,
  executable TEXT NOT NULL,
  command TEXT NOT NULL,
  rank INTEGER,
  local_rank INTEGER,
  world_size INTEGER,
  started_ns INTEGER NOT NULL,
  first_ns INTEGER NOT NULL,
  last_ns INTEGER NOT NULL,
  kernels INTEGER NOT NULL,
  copies INTEGER NOT NULL,
  calls INTEGER NOT NULL,
  ranges INTEGER NOT NULL,
  dropped INTEGER NOT NULL,
  ended INTEGER NOT NULL,
  library TEXT NOT NULL,
  devices TEXT NOT NULL
);
