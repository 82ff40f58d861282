// The random generators of this Node process. A fork copies them, so that parent and clones would
// draw the same numbers; here they are made anew from the kernel's, which `sf-guestd` has renewed by
// then. Called by `identity.ts`; importing it replaces `Math.random`, whose state V8 shows nobody.
//
//   randomBytes, getRandomValues, keys, TLS   OpenSSL's: RAND_poll() reseeds the process's primary
//                                             generator, and those of all threads follow it
//   randomUUID, randomInt                     Node keeps 128 and 1,024 in store: filled anew
//   Math.random                               xoshiro128**, seeded anew
//
// OpenSSL is reached through koffi, a foreign-function library: Node has no call that reseeds it. What
// is called after a fork was called once before it, as a clone has to translate all that it runs.

import * as crypto from 'node:crypto';
import { createRequire } from 'node:module';
import { SnowforkError } from '../api/errors.js';
import { createRandom } from './random.js';

/** Node's stores of `randomUUID` and `randomInt`, by the number of values. */
const UUIDS_STORED = 128;
const INTS_STORED = 1024;
const UUID_BYTES = 16;
const INT_BYTES = 6;
const SEED_BYTES = 16;

/** OpenSSL's RAND_poll: 1 when the generator was reseeded; or why it can't be called. */
const reseedOpenssl: (() => number) | SnowforkError = findReseed();
const uuidStore = findUuidStore();
const intStore = findIntStore();

const random = createRandom(crypto.randomBytes(SEED_BYTES));
// Whoever has put a generator of their own there, for repeatable tests, keeps it.
if (/\[native code\]/.test(Function.prototype.toString.call(Math.random))) {
  const descriptor = Object.getOwnPropertyDescriptor(Math, 'random');
  Object.defineProperty(Math, 'random', { ...descriptor, value: random.next });
}

/** @throws SnowforkError SF_IDENTITY_FAILED when OpenSSL can't be reached: clones would share its state */
export function assertRenewable(): void {
  if (typeof reseedOpenssl !== 'function') throw reseedOpenssl;
}

/**
 * Makes them anew; OpenSSL's stays as it is where it can't be reached.
 * @throws SnowforkError SF_IDENTITY_FAILED
 */
export function renewGenerators(): void {
  if (typeof reseedOpenssl === 'function' && reseedOpenssl() !== 1) {
    throw new SnowforkError('SF_IDENTITY_FAILED', "OpenSSL's generator did not take new entropy");
  }
  random.seed(crypto.randomBytes(SEED_BYTES));
  if (uuidStore !== undefined) crypto.randomFillSync(uuidStore);
  else for (let count = 0; count < UUIDS_STORED; count++) crypto.randomUUID();
  if (intStore !== undefined) crypto.randomFillSync(intStore);
  else for (let count = 0; count < INTS_STORED; count++) crypto.randomInt(2);
}

function findReseed(): (() => number) | SnowforkError {
  const require = createRequire(import.meta.url);
  let koffi: typeof import('koffi');
  try {
    try {
      // Its compiled part alone: the rest takes a quarter of a second under emulation.
      koffi = require('@koromix/koffi-linux-x64/linux_x64/koffi.node');
    } catch {
      koffi = require('koffi');
    }
    // The process itself: its OpenSSL is part of the program, or a library that it was linked to.
    return koffi.load(null).func('int RAND_poll()');
  } catch (cause) {
    return new SnowforkError(
      'SF_IDENTITY_FAILED',
      "OpenSSL's random generator can't be reached in this process, and its clones would all draw " +
        `the same numbers: ${(cause as Error).message}. Images with the package nodejs have what is ` +
        'needed, the npm package koffi; a program that brings its own Node or its own node_modules ' +
        'needs it too.',
      { cause },
    );
  }
}

/**
 * The bytes that `randomUUID` keeps in store, and uses at the next calls: when it fills them, it asks
 * for their number. Nothing when this Node does it in another way; then they are used up one by one,
 * which takes longer.
 */
function findUuidStore(): Uint8Array | undefined {
  const typedArray = Object.getPrototypeOf(Uint8Array.prototype) as object;
  const byteLength = Object.getOwnPropertyDescriptor(typedArray, 'byteLength')!;
  const length = byteLength.get!;
  let found: Uint8Array | undefined;
  Object.defineProperty(typedArray, 'byteLength', {
    ...byteLength,
    get(this: Uint8Array) {
      const bytes = length.call(this) as number;
      if (bytes === UUIDS_STORED * UUID_BYTES) found = this;
      return bytes;
    },
  });
  try {
    for (let count = 0; found === undefined && count < UUIDS_STORED; count++) crypto.randomUUID();
  } finally {
    Object.defineProperty(typedArray, 'byteLength', byteLength);
  }
  return found;
}

/** The same of `randomInt`, which reads each number by `readUIntBE`. */
function findIntStore(): Uint8Array | undefined {
  const { readUIntBE } = Buffer.prototype;
  let found: Buffer | undefined;
  Buffer.prototype.readUIntBE = function (this: Buffer, offset: number, byteLength: number) {
    found = this;
    return readUIntBE.call(this, offset, byteLength);
  };
  try {
    crypto.randomInt(2);
  } finally {
    Buffer.prototype.readUIntBE = readUIntBE;
  }
  return found?.length === INTS_STORED * INT_BYTES ? found : undefined;
}

// So that a fork meets no code that never ran.
renewGenerators();
