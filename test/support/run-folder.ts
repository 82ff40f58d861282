// A run folder with snapshots of other hosts, as an agent leaves it to its pager, and what of a pager
// fetches their pages, without a mount and in the test's own process. Used by tests of pages of other
// hosts by loopback.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { encodePageMap, HeldPages, PAGE_BYTES } from '@snowfork/memserver';
import { Registry } from '../../packages/clone-agent/src/pager/objects.js';
import { NETWORK_FILE, RemotePages } from '../../packages/clone-agent/src/pager/remote-pages.js';
import { ServedObject } from '../../packages/clone-agent/src/pager/served-object.js';
import { MAIN_THREAD } from '../../packages/clone-agent/src/pager/thread-data.js';
import { heldPath, type Origin } from '../../packages/clone-agent/src/store/origins.js';

export const LOOPBACK = '127.0.0.1';
const REPLICA_BYTES_MAX = 2 ** 30;

/** An origin without the host's part; by loopback nothing is multicast. */
export function originAt(port: number, of: Partial<Origin> & Pick<Origin, 'key'>): Origin {
  const group = { address: '239.77.0.9', port: 7709 };
  return { host: 'alpha', snapshot: 's1', address: LOOPBACK, port, group, layers: ['l1'], ...of };
}

export class RunFolder {
  readonly path = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-run-'));
  readonly complaints: string[] = [];
  readonly remote: RemotePages;
  readonly registry: Registry;
  /** By snapshot: its RAM. */
  readonly rams = new Map<string, ServedObject>();
  readonly pageCount: number;
  #nextNumber = 1;

  constructor(of: { pageCount: number; originTimeoutMs?: number; replicaBytesMax?: number }) {
    const { pageCount, originTimeoutMs = 60_000, replicaBytesMax = REPLICA_BYTES_MAX } = of;
    this.pageCount = pageCount;
    for (const name of ['snapshots', 'layers']) fs.mkdirSync(path.join(this.path, name));
    const network = { address: LOOPBACK, originTimeoutMs, replicaBytesMax };
    fs.writeFileSync(path.join(this.path, NETWORK_FILE), JSON.stringify(network));
    const complain = (message: string): void => void this.complaints.push(message);
    const nothing = (): void => undefined;
    const { path: runFolder } = this;
    this.remote = new RemotePages({ runFolder, push: nothing, askable: nothing, complain });
    this.registry = new Registry(runFolder, {
      complain,
      loaded: (object, layers) => {
        const served = new ServedObject(object, MAIN_THREAD);
        this.rams.set(object.snapshot, served);
        this.remote.open(served, layers);
      },
    });
  }

  layerPath(layer: string): string {
    return path.join(this.path, 'layers', layer);
  }

  /** A snapshot whose pages all lie in the first of the layers. */
  add(
    id: string,
    of: { origins?: readonly Origin[]; layers?: readonly string[]; entry?: number },
  ): ServedObject {
    const { pageCount } = this;
    const { origins = [], layers = ['l1'], entry = 1 } = of;
    const folder = path.join(this.path, 'snapshots', id);
    fs.mkdirSync(folder);
    for (const layer of layers) this.#makeReplica(this.layerPath(layer));
    const entries = new Uint16Array(pageCount).fill(entry);
    const map = encodePageMap({ entries, layerCount: layers.length });
    fs.writeFileSync(path.join(folder, 'ram.map'), map);
    const objects = [{ name: 'ram', sizeBytes: pageCount * PAGE_BYTES, map: 'ram.map', layers }];
    const number = this.#nextNumber++;
    const file = { version: 1, number, id, objects, origins };
    fs.writeFileSync(path.join(folder, 'snapshot.json'), JSON.stringify(file));
    this.registry.loadAll(id);
    return this.rams.get(id)!;
  }

  /** As the pager does when the agent has dropped it. */
  drop(id: string): void {
    const close = this.registry.forget(id);
    this.remote.close(this.rams.get(id)!.shared.nodeid);
    this.rams.delete(id);
    close();
  }

  close(): void {
    for (const id of [...this.rams.keys()]) this.drop(id);
    fs.rmSync(this.path, { recursive: true });
  }

  #makeReplica(file: string): void {
    if (fs.existsSync(file)) return;
    HeldPages.create(heldPath(file), this.pageCount);
    fs.writeFileSync(file, '');
    fs.truncateSync(file, this.pageCount * PAGE_BYTES);
  }
}
