// The SDK of programs on the host: `connect()` and what it gives. It talks to the agent over its
// unix socket and imports nothing of the agent's code.

export {
  type Accelerator,
  type BuildProgress,
  type BuildResult,
  type CheckpointResult,
  type CloneTimes,
  type DoctorCheck,
  type DoctorReport,
  defaultStateFolder,
  type End,
  type ErrorCode,
  type ExecExit,
  type FreezeTimes,
  type HostInfo,
  type HostStats,
  type ImageInfo,
  type Slot,
  type SnapshotInfo,
  SnowforkError,
  STATE_FOLDER_DEFAULT,
  type TicketInfo,
  type VmInfo,
  type VmStats,
  type WatchEvent,
} from '../api/index.js';
export { type ConnectOptions, connect } from './connect.js';
export type { ConsoleSession } from './console.js';
export {
  type ExecOptions,
  type ExecResult,
  type ExecStdin,
  MAX_BUFFER_BYTES_DEFAULT,
} from './exec.js';
export { GuestConnection } from './guest-connection.js';
export { GuestProcess, type SpawnOptions } from './guest-process.js';
export { type BuildImageOptions, type BuildImageRequest, Host } from './host.js';
export {
  type CloneOptions,
  type ClonesResult,
  type ForkOutcome,
  type SettledClone,
  Vm,
} from './vm.js';
export type { WaitOptions } from './waits.js';
