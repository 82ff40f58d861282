// AES-256-GCM for datagrams. Of the OpenSSL that Node is linked with, called directly:
// `node:crypto` makes an object with a stream for each datagram, which takes six times as long as
// the cipher and leaves garbage (docs/internals/multicast.md has figures). Where its functions can't
// be found, `node:crypto` does it. Keeps no keys; called by `sealing.ts`.

import { createCipheriv, createDecipheriv } from 'node:crypto';
import koffi from 'koffi';

export const KEY_BYTES = 32;
export const TAG_BYTES = 16;
export const NONCE_BYTES = 12;

export interface Aead {
  /** Puts the sealed body, and the tag after it, at `offset`; all before that is authenticated. */
  seal(key: Buffer, nonce: Buffer, body: Buffer, into: Buffer, offset: number): void;
  /** Puts the body of a datagram at the start of `into`; `false` when it was not sealed so. */
  open(key: Buffer, nonce: Buffer, datagram: Buffer, offset: number, into: Buffer): boolean;
}

const CIPHER = 'aes-256-gcm';
/** In OpenSSL's evp.h. */
const GET_TAG = 0x10;
const SET_TAG = 0x11;
const SEAL = 1;
const OPEN = 0;

export const portableAead: Aead = {
  seal(key, nonce, body, into, offset) {
    const cipher = createCipheriv(CIPHER, key, nonce, { authTagLength: TAG_BYTES });
    cipher.setAAD(into.subarray(0, offset));
    into.set(cipher.update(body), offset);
    cipher.final();
    into.set(cipher.getAuthTag(), offset + body.length);
  },
  open(key, nonce, datagram, offset, into) {
    const end = datagram.length - TAG_BYTES;
    const decipher = createDecipheriv(CIPHER, key, nonce, { authTagLength: TAG_BYTES });
    decipher.setAAD(datagram.subarray(0, offset));
    decipher.setAuthTag(datagram.subarray(end));
    into.set(decipher.update(datagram.subarray(offset, end)));
    try {
      decipher.final();
      return true;
    } catch {
      return false; // it has no other way to say that the tag is wrong
    }
  },
};

/** `undefined` where the functions can't be found, or don't do what they should. */
export function directAead(): Aead | undefined {
  try {
    const direct = newDirectAead();
    return isRight(direct) ? direct : undefined;
  } catch {
    return undefined;
  }
}

/** Of this thread: OpenSSL's context serves one datagram at a time. */
export const aead: Aead = directAead() ?? portableAead;

/** @throws Error when a function is missing. */
function newDirectAead(): Aead {
  const openssl = koffi.load(null);
  const context: unknown = openssl.func('void *EVP_CIPHER_CTX_new()')();
  const cipher: unknown = openssl.func('void *EVP_aes_256_gcm()')();
  const init = openssl.func(
    'int EVP_CipherInit_ex(void *, void *cipher, void *engine, void *key, void *nonce, int what)',
  );
  const update = openssl.func(
    'int EVP_CipherUpdate(void *, void *out, void *length, void *in, int bytes)',
  );
  const final = openssl.func('int EVP_CipherFinal_ex(void *, void *out, void *length)');
  const control = openssl.func('int EVP_CIPHER_CTX_ctrl(void *, int what, int bytes, void *at)');
  // Where OpenSSL says how much it wrote, which is known, and where it may write but does not.
  const length = Buffer.alloc(4);
  const nowhere = Buffer.alloc(NONCE_BYTES + TAG_BYTES);
  const begin = (key: Buffer, nonce: Buffer, what: number): void => {
    if (key.length !== KEY_BYTES || nonce.length !== NONCE_BYTES)
      throw new RangeError('key, nonce');
    if (init(context, null, null, key, nonce, what) !== 1) throw new Error(CIPHER);
  };
  if (init(context, cipher, null, null, null, SEAL) !== 1) throw new Error(CIPHER);
  return {
    seal(key, nonce, body, into, offset) {
      const end = offset + body.length;
      if (into.length < end + TAG_BYTES) throw new RangeError('no room for a datagram');
      begin(key, nonce, SEAL);
      update(context, null, length, into, offset);
      if (body.length > 0) update(context, into.subarray(offset), length, body, body.length);
      const isSealed = final(context, nowhere, length);
      const hasTag = control(context, GET_TAG, TAG_BYTES, into.subarray(end));
      if (isSealed !== 1 || hasTag !== 1) throw new Error('a datagram could not be sealed');
    },
    open(key, nonce, datagram, offset, into) {
      const end = datagram.length - TAG_BYTES;
      const bytes = end - offset;
      if (bytes < 0 || into.length < bytes) throw new RangeError('no room for a body');
      begin(key, nonce, OPEN);
      control(context, SET_TAG, TAG_BYTES, datagram.subarray(end));
      update(context, null, length, datagram, offset);
      if (bytes > 0) update(context, into, length, datagram.subarray(offset), bytes);
      return final(context, nowhere, length) === 1;
    },
  };
}

/** Seals as `node:crypto` does, and opens nothing else. */
function isRight(direct: Aead): boolean {
  const key = Buffer.alloc(KEY_BYTES, 1);
  const nonce = Buffer.alloc(NONCE_BYTES, 2);
  const body = Buffer.from('a page of some bytes');
  const seal = (by: Aead): Buffer => {
    const into = Buffer.alloc(8 + body.length + TAG_BYTES, 3);
    by.seal(key, nonce, body, into, 8);
    return into;
  };
  const sealed = seal(direct);
  const opened = Buffer.alloc(body.length);
  const isOpened = direct.open(key, nonce, sealed, 8, opened) && opened.equals(body);
  const isSame = sealed.equals(seal(portableAead));
  sealed[0]! ^= 1;
  return isSame && isOpened && !direct.open(key, nonce, sealed, 8, opened);
}
