// All but the control socket (`control.ts`) and the process (`main.ts`). `pages.ts` is less.

export * from './asking.js';
export * from './complaints.js';
export * from './counts.js';
export type { Group } from './net/group-sockets.js';
export { type LayerFile, LayerFiles } from './net/layer-files.js';
export { MEMORY_SERVER_SOCKET } from './net/names.js';
export { OriginClient, type OriginSink } from './net/origin-client.js';
export * from './net/page-network.js';
export * from './net/page-service.js';
export * from './pages.js';
export * from './receiver/asking-state.js';
export * from './receiver/page-receiver.js';
export { WINDOW_PAGES_MAX } from './receiver/prefetch-queue.js';
export { ASSEMBLIES_MAX } from './receiver/reassembly.js';
export { type Address, RECEIVERS_MAX } from './server/known-receivers.js';
export type { Send } from './server/outgoing.js';
export type { PageSource } from './server/page-loader.js';
export { QUEUE_PAGES_MAX } from './server/page-queue.js';
export * from './server/page-server.js';
export { TokenBucket } from './server/token-bucket.js';
export { ASKERS_MAX, WAITING_PAGES_MAX, type WantedPage } from './server/waiting-pages.js';
export { directAead, portableAead } from './wire/aead.js';
export * from './wire/datagrams.js';
export * from './wire/geometry.js';
export * from './wire/packing.js';
export * from './wire/replay-window.js';
export * from './wire/sealing.js';
