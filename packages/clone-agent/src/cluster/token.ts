// Tokens: by one a host may join for a while. A token has a secret, of which the cluster keeps the
// hash alone, and the fingerprint of the cluster's authority, so that the host that joins knows whom it
// talks to. Kept beside `cluster.json` on the host that signs.

import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { SnowforkError } from '@snowfork/sdk/api';
import { z } from 'zod';

export const TOKEN_LIFETIME_MS = 3_600_000;
const SECRET_BYTES = 16;
const TOKENS_MAX = 256;

const tokensSchema = z.array(
  z.strictObject({ hash: z.string().length(64), expiresAt: z.number() }),
);

export interface Token {
  readonly secret: string;
  /** SHA-256 of the authority's certificate, in hex. */
  readonly fingerprint: string;
}

/** @throws SnowforkError SF_BAD_REQUEST when it is no token. */
export function readToken(text: string): Token {
  const [, secret, fingerprint] = /^([0-9a-f]{32})\.([0-9a-f]{64})$/.exec(text.trim()) ?? [];
  if (secret !== undefined && fingerprint !== undefined) return { secret, fingerprint };
  const message = 'that is no token: `sf cluster token` on a host of the cluster prints one';
  throw new SnowforkError('SF_BAD_REQUEST', message);
}

export class Tokens {
  readonly #file: string;

  constructor(stateRoot: string) {
    this.#file = path.join(stateRoot, 'tokens.json');
  }

  /** As it is to be given to the host that is to join. */
  make(fingerprint: string, lifetimeMs: number): string {
    const secret = randomBytes(SECRET_BYTES).toString('hex');
    const valid = this.#read().filter(({ expiresAt }) => expiresAt > Date.now());
    valid.push({ hash: hash(secret), expiresAt: Date.now() + lifetimeMs });
    fs.writeFileSync(this.#file, JSON.stringify(valid.slice(-TOKENS_MAX)), { mode: 0o600 });
    return `${secret}.${fingerprint}`;
  }

  /** @throws SnowforkError SF_PERMISSION: it was never given, or is no longer valid. */
  assertValid(secret: string): void {
    const wanted = Buffer.from(hash(secret));
    const token = this.#read().find((known) => timingSafeEqual(Buffer.from(known.hash), wanted));
    const again = '`sf cluster token` prints a new one';
    if (token === undefined) {
      throw new SnowforkError('SF_PERMISSION', `the token is not one of this cluster: ${again}`);
    }
    if (token.expiresAt <= Date.now()) {
      const when = new Date(token.expiresAt).toISOString();
      throw new SnowforkError('SF_PERMISSION', `the token ran out at ${when}: ${again}`);
    }
  }

  #read(): z.infer<typeof tokensSchema> {
    if (!fs.existsSync(this.#file)) return [];
    return tokensSchema.parse(JSON.parse(fs.readFileSync(this.#file, 'utf8')));
  }
}

function hash(secret: string): string {
  return createHash('sha256').update(secret).digest('hex');
}
