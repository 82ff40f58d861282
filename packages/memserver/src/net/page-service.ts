// The side of a process that serves pages: one UDP port for all of its snapshots, told apart by the
// key that a datagram names, and a server for each. Knows layers' files and no VMs. The memory
// server's main program has one.

import { randomBytes } from 'node:crypto';
import type { ServerCounts } from '../counts.js';
import type { Address } from '../server/known-receivers.js';
import { PageServer } from '../server/page-server.js';
import { TokenBucket } from '../server/token-bucket.js';
import type { WantedPage } from '../server/waiting-pages.js';
import { type BodySizes, bodySizesFor, datagramBytesFor } from '../wire/geometry.js';
import { keyIdOf, newSenderId, snapshotKey } from '../wire/sealing.js';
import { Alarm } from './alarm.js';
import type { Group } from './group-sockets.js';
import { type LayerFile, LayerFiles } from './layer-files.js';
import { mtuOf } from './system-socket.js';
import { UdpSocket } from './udp-socket.js';
import { WantedLine } from './wanted-line.js';

const SENDER_RANDOM_BYTES = 8;
const clock = (): number => performance.now();

export interface SnapshotToServe {
  readonly snapshot: string;
  readonly key: Buffer;
  readonly group?: Group | undefined;
  /** In the order of their numbers. */
  readonly layers: readonly LayerFile[];
  /**
   * Layers of which not all is here are replicas that the process with this control socket fills:
   * it is told what is asked for and is not here. Without it, such a page is absent.
   */
  readonly wants?: { readonly socket: string; readonly snapshot: string } | undefined;
}

interface Served {
  readonly keyId: number;
  readonly key: Buffer;
  readonly group: Group | undefined;
  readonly server: PageServer;
  readonly files: LayerFiles;
  readonly alarm: Alarm;
}

export class PageService {
  readonly #bodySizes: BodySizes;
  readonly #link: TokenBucket;
  readonly #bySnapshot = new Map<string, Served>();
  readonly #byKeyId = new Map<number, Served>();
  /** By control socket. */
  readonly #lines = new Map<string, WantedLine>();
  /** Something came for them that is not acted on yet. */
  readonly #touched = new Set<Served>();
  /** Have pages that wait to be sent: they must not wait for anything else. */
  readonly #sending = new Set<PageServer>();
  #socket!: UdpSocket;
  #datagramsUnknown = 0;

  /** @throws Error when the port can't be had. */
  static async open(of: {
    /** IPv4, of the interface that pages leave by. */
    readonly address: string;
    readonly port: number;
    readonly linkBytesPerSecond: number;
    complain(message: string): void;
  }): Promise<PageService> {
    const bodySizes = bodySizesFor(mtuOf(of.address));
    const service = new PageService(of.linkBytesPerSecond, bodySizes);
    service.#socket = await UdpSocket.open({
      address: of.address,
      port: of.port,
      multicastInterface: of.address,
      cutBytesMax: datagramBytesFor(bodySizes.usual),
      take: service.#take,
      taken: service.#taken,
      isPrompt: true,
      mayLinger: () => service.#sending.size === 0,
      complain: of.complain,
    });
    return service;
  }

  private constructor(linkBytesPerSecond: number, bodySizes: BodySizes) {
    this.#bodySizes = bodySizes;
    this.#link = new TokenBucket({ bytesPerSecond: linkBytesPerSecond, nowMs: clock() });
  }

  get port(): number {
    return this.#socket.port;
  }

  /**
   * Serves the snapshot from now on. Again: with these layers; key and group stay, and so do those
   * who ask for its pages.
   * @throws Error when a layer's file can't be opened, or key or group are not those of before.
   */
  serve(of: SnapshotToServe): void {
    const before = this.#bySnapshot.get(of.snapshot);
    if (before !== undefined) {
      if (!before.key.equals(of.key) || !isSameGroup(before.group, of.group)) {
        throw new Error(`${of.snapshot} is served with another key or group: drop it first`);
      }
      before.files.set(of.layers);
      return;
    }
    const served = this.#newServed(of);
    if (this.#byKeyId.has(served.keyId)) {
      served.files.close();
      throw new Error(`${of.snapshot} has the key of another snapshot`);
    }
    this.#bySnapshot.set(of.snapshot, served);
    this.#byKeyId.set(served.keyId, served);
  }

  /** Whether it was served. */
  drop(snapshot: string): boolean {
    const served = this.#bySnapshot.get(snapshot);
    if (served === undefined) return false;
    this.#bySnapshot.delete(snapshot);
    this.#byKeyId.delete(served.keyId);
    this.#touched.delete(served);
    this.#sending.delete(served.server);
    served.alarm.stop();
    served.files.close();
    return true;
  }

  get served(): { snapshot: string; layers: number }[] {
    return Array.from(this.#bySnapshot, ([snapshot, { files }]) => {
      return { snapshot, layers: files.layerCount };
    });
  }

  get counts(): {
    readonly datagramsUnknown: number;
    readonly datagramsUnsent: number;
    readonly snapshots: Readonly<Record<string, ServerCounts>>;
  } {
    const all = Array.from(
      this.#bySnapshot,
      ([name, { server }]) => [name, server.counts] as const,
    );
    return {
      datagramsUnknown: this.#datagramsUnknown,
      datagramsUnsent: this.#socket.unsent,
      snapshots: Object.fromEntries(all),
    };
  }

  async close(): Promise<void> {
    for (const snapshot of [...this.#bySnapshot.keys()]) this.drop(snapshot);
    for (const line of this.#lines.values()) line.close();
    await this.#socket.close();
  }

  #newServed(of: SnapshotToServe): Served {
    const { group, wants } = of;
    const key = snapshotKey(of.key);
    const files = new LayerFiles();
    files.set(of.layers);
    const toGroup = group === undefined ? undefined : { host: group.address, port: group.port };
    const server = new PageServer({
      key,
      senderId: newSenderId(randomBytes(SENDER_RANDOM_BYTES)),
      source: files,
      send: (datagram, to = toGroup) => {
        if (to !== undefined) this.#socket.send(datagram, to);
      },
      clock,
      bodySizes: this.#bodySizes,
      link: this.#link,
      wanted: wants && this.#telling(wants, of.key.toString('base64')),
    });
    const alarm: Alarm = new Alarm({
      clock,
      ring: () => this.#advance({ server, alarm }),
      wait: (ms) => this.#socket.wait(ms),
    });
    return { keyId: key.id, key: Buffer.from(of.key), group, server, files, alarm };
  }

  #telling(
    { socket, snapshot }: NonNullable<SnapshotToServe['wants']>,
    key: string,
  ): (pages: readonly WantedPage[]) => void {
    const line = this.#lines.get(socket) ?? new WantedLine(socket);
    this.#lines.set(socket, line);
    return (pages) => line.tell({ snapshot, key }, pages);
  }

  #advance({ server, alarm }: Pick<Served, 'server' | 'alarm'>): void {
    this.#socket.corked(() => alarm.set(server.advance()));
    if (server.isSending) this.#sending.add(server);
    else this.#sending.delete(server);
  }

  readonly #take = (datagram: Buffer, from: Address): void => {
    const keyId = keyIdOf(datagram);
    const served = keyId === undefined ? undefined : this.#byKeyId.get(keyId);
    if (served === undefined) {
      this.#datagramsUnknown++;
      return;
    }
    served.server.receive(datagram, from);
    this.#touched.add(served);
  };

  readonly #taken = (): void => {
    for (const served of this.#touched) this.#advance(served);
    this.#touched.clear();
  };
}

function isSameGroup(one: Group | undefined, other: Group | undefined): boolean {
  return one?.address === other?.address && one?.port === other?.port;
}
