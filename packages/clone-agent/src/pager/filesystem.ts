// Everything that the kernel asks but the pages: the greeting, names, attributes, opens. The tree is
// two folders deep and read-only. Lives on the main thread; the registry knows what there is.
//
// Memory is cached by the kernel, so that clones of a snapshot share its pages. Disks are not: the
// mount's read-ahead is off, for the memory's sake, and the kernel would fetch a disk page by page
// (128 KiB: 2.7 ms). Past the cache, a READ is as large as what QEMU reads (80 µs), and nothing is
// held twice, as the layer's file has its own cache.

import os from 'node:os';
import {
  decodeForget,
  decodeInit,
  decodeLookup,
  encodeAttributes,
  encodeEntry,
  encodeInit,
  encodeOpen,
  encodeStatfs,
  FUSE_MAJOR,
  FUSE_MINOR,
  InitFlag,
  type NodeAttributes,
  Opcode,
  OpenFlag,
  type RequestHeader,
} from './fuse-wire.js';
import type { NodeInfo, Registry } from './objects.js';
import type { Openers } from './openers.js';
import { isMemory } from './served-object.js';
import type { FuseReplies } from './session.js';

const { EACCES, ENOENT, ENOSYS, EROFS, ESTALE, EPROTO } = os.constants.errno;

const INIT_FLAGS =
  InitFlag.asyncRead |
  InitFlag.parallelDirectoryOperations |
  InitFlag.maxPages |
  InitFlag.explicitInvalidation;
const BACKGROUND_READS_MAX = 64;
const CONGESTION_THRESHOLD = 48;

const FOLDER_MODE = 0o040755;
/** QEMU before 8.2 opens what it maps privately for writing; a WRITE is refused all the same. */
const FILE_MODE = 0o100666;
/** Snapshots don't change; `drop` says when one goes. */
const VALID_SECONDS = 10 * 365 * 24 * 3600;

export class Filesystem {
  readonly #registry: Registry;
  readonly #openers: Openers;
  readonly #replies: FuseReplies;
  readonly #opened: (nodeid: number) => void;
  readonly #forgotten: (nodeid: number) => void;

  constructor(of: {
    registry: Registry;
    openers: Openers;
    replies: FuseReplies;
    /** An object will be read soon. */
    opened: (nodeid: number) => void;
    /** The kernel has nothing of this node any more. */
    forgotten: (nodeid: number) => void;
  }) {
    this.#registry = of.registry;
    this.#openers = of.openers;
    this.#replies = of.replies;
    this.#opened = of.opened;
    this.#forgotten = of.forgotten;
  }

  /** @throws FuseWireError */
  handle(header: RequestHeader, request: Buffer): void {
    switch (header.opcode) {
      case Opcode.init:
        this.#init(header, request);
        break;
      case Opcode.lookup:
        this.#lookup(header, request);
        break;
      case Opcode.getattr:
        this.#getAttributes(header);
        break;
      case Opcode.open:
        this.#open(header);
        break;
      case Opcode.opendir:
        this.#replies.result(header, encodeOpen(0));
        break;
      case Opcode.statfs:
        this.#replies.result(header, encodeStatfs());
        break;
      case Opcode.forget:
      case Opcode.batchForget:
        // Never answered.
        for (const node of decodeForget(request, request.length, header)) this.#forgotten(node);
        break;
      case Opcode.readdir: // Nothing is listed, everything is found when asked for by name.
      case Opcode.release:
      case Opcode.releasedir:
      case Opcode.destroy:
        this.#replies.done(header);
        break;
      case Opcode.setattr:
      case Opcode.write:
        this.#replies.error(header, EROFS);
        break;
      default:
        this.#replies.error(header, ENOSYS);
    }
  }

  #init(header: RequestHeader, request: Buffer): void {
    const init = decodeInit(request, request.length);
    if (init.major < FUSE_MAJOR) {
      this.#replies.error(header, EPROTO);
      return;
    }
    const result = encodeInit({
      minor: Math.min(init.minor, FUSE_MINOR),
      maxReadahead: 0,
      flags: INIT_FLAGS & init.flags,
      maxBackground: BACKGROUND_READS_MAX,
      congestionThreshold: CONGESTION_THRESHOLD,
    });
    this.#replies.result(header, result);
  }

  #lookup(header: RequestHeader, request: Buffer): void {
    const node = this.#registry.lookup(header.nodeid, decodeLookup(request, request.length));
    // Not cached as missing: the name may be there a moment later.
    if (node === undefined) this.#replies.error(header, ENOENT);
    else this.#replies.result(header, encodeEntry(attributes(node), VALID_SECONDS));
  }

  #getAttributes(header: RequestHeader): void {
    const node = this.#registry.node(header.nodeid);
    if (node === undefined) this.#replies.error(header, ESTALE);
    else this.#replies.result(header, encodeAttributes(attributes(node), VALID_SECONDS));
  }

  #open(header: RequestHeader): void {
    const node = this.#registry.node(header.nodeid);
    if (node?.kind !== 'object') {
      this.#replies.error(header, ESTALE);
      return;
    }
    if (!this.#openers.mayOpen(header.uid, `${node.snapshot}/${node.name}`)) {
      this.#replies.error(header, EACCES);
      return;
    }
    const flags = isMemory(node.name) ? OpenFlag.keepCache : OpenFlag.directIo;
    this.#replies.result(header, encodeOpen(flags));
    this.#opened(node.nodeid);
  }
}

function attributes(node: NodeInfo): NodeAttributes {
  if (node.kind !== 'object') return { nodeid: node.nodeid, sizeBytes: 0, mode: FOLDER_MODE };
  return { nodeid: node.nodeid, sizeBytes: node.sizeBytes, mode: FILE_MODE };
}
