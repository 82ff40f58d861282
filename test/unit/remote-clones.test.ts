// Clones on another host, when what the two say to each other is lost or late, and when an agent is
// another one than before: each slot settles, nothing runs that nobody knows of, and what was lent is
// taken back.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { SnowforkError } from '@snowfork/sdk/api';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { NEVER_STARTED } from '../../packages/clone-agent/src/vms/tickets.js';
import { AgentHalf, unreachable } from '../support/agent-halves.js';
import { eventually } from '../support/eventually.js';

const VALUE = Buffer.from('value');

let root: string;
let alpha: AgentHalf;
let beta: AgentHalf;

beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-remote-'));
  alpha = new AgentHalf(root, 'alpha');
  beta = new AgentHalf(root, 'beta');
  alpha.other = beta;
  beta.other = alpha;
});
afterEach(() => fs.rmSync(root, { recursive: true, force: true }));

/** Lets calls of that kind pass when it is called. */
function holdBack(of: AgentHalf, held: string): () => void {
  let letPass = () => {};
  const passes = new Promise<void>((resolve) => {
    letPass = resolve;
  });
  of.wire.there = async (method) => {
    if (method === held) await passes;
  };
  return letPass;
}

async function forked() {
  const snapshot = await alpha.freeze();
  const ticket = alpha.ticket(2);
  const clones = await alpha.fork(snapshot, ticket);
  expect(clones.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled']);
  return { id: snapshot.file.id, snapshot, ticket };
}

it('a snapshot is lent for as long as clones there need it, and goes after that', async () => {
  const { id, snapshot, ticket } = await forked();
  expect(snapshot.file.lentTo).toEqual(['beta']);
  beta.end(ticket.id, id, VALUE);
  await eventually(() => {
    expect(ticket.slots).toMatchObject([{ value: VALUE }, { value: VALUE }]);
    expect([...alpha.snapshots, ...beta.snapshots]).toEqual([]);
    expect(beta.tickets.find(ticket.id)).toBeUndefined();
  });
});

describe('how a clone ended', () => {
  it.each([
    ['can’t be reached', unreachable],
    ['is not heard of', () => new SnowforkError('SF_HOST_NOT_FOUND', 'there is no alpha')],
  ])('is told when home is there again that %s', async (_, error) => {
    const { id, ticket } = await forked();
    let isAway = true;
    beta.wire.there = async () => {
      if (isAway) throw error();
    };
    const part = beta.tickets.get(ticket.id);
    beta.end(ticket.id, id, VALUE);
    await new Promise((resolve) => setTimeout(resolve, 150));
    // Kept as long as nobody has heard of it.
    expect(beta.tickets.find(ticket.id)).toBe(part);
    expect(part.slots.map(({ isTold }) => isTold)).toEqual([undefined, undefined]);
    isAway = false;
    await eventually(() => {
      expect(ticket.slots).toMatchObject([{ value: VALUE }, { value: VALUE }]);
      expect(beta.tickets.find(ticket.id)).toBeUndefined();
    });
  });
});

describe('a ticket that is killed', () => {
  it('before its clones are to start has none there', async () => {
    const snapshot = await alpha.freeze();
    const ticket = alpha.ticket(2);
    const letPass = holdBack(alpha, 'startClones');
    const forking = alpha.fork(snapshot, ticket);
    alpha.remote.kill(ticket);
    await new Promise((resolve) => setTimeout(resolve, 20));
    letPass();
    expect(await forking).toMatchObject([{ status: 'rejected' }, { status: 'rejected' }]);
    expect(ticket.slots).toMatchObject([{ status: 'lost' }, { status: 'lost' }]);
    expect(beta.tickets.find(ticket.id)).toBeUndefined();
    await eventually(() => expect([...alpha.snapshots, ...beta.snapshots]).toEqual([]));
  });

  it('while its host can’t be reached is killed when it can', async () => {
    const { ticket } = await forked();
    let attempts = 0;
    alpha.wire.there = async () => {
      if (++attempts < 3) throw unreachable();
    };
    alpha.remote.kill(ticket);
    await eventually(() => expect(beta.killed).toEqual([ticket.id]));
  });
});

describe('a start', () => {
  it('whose answer is lost leaves no clone that nobody knows of', async () => {
    const snapshot = await alpha.freeze();
    const ticket = alpha.ticket(2);
    alpha.wire.back = async (method) => {
      if (method === 'startClones') throw unreachable();
    };
    const clones = await alpha.fork(snapshot, ticket);
    expect(clones).toMatchObject([{ status: 'rejected' }, { status: 'rejected' }]);
    await eventually(() => expect(beta.killed).toEqual([ticket.id]));
  });

  it.each(['is refused there', 'does not arrive'])('that %s leaves nothing lent', async (what) => {
    const snapshot = await alpha.freeze();
    const isRefused = what === 'is refused there';
    beta.startPart = async () => {
      throw new SnowforkError('SF_NO_ROOM', 'no room');
    };
    alpha.wire.there = async (method) => {
      if (!isRefused && method === 'startClones') throw unreachable();
    };
    expect(await alpha.fork(snapshot, alpha.ticket(1))).toMatchObject([{ status: 'rejected' }]);
    await eventually(() => expect([...alpha.snapshots, ...beta.snapshots]).toEqual([]));
  });
});

describe('a host whose agent has started anew', () => {
  /** With nothing of what the one before it had. */
  function startBetaAnew(): void {
    fs.rmSync(path.join(root, 'beta'), { recursive: true });
    beta = new AgentHalf(root, 'beta');
    alpha.other = beta;
    beta.other = alpha;
  }

  it('has lost the clones that it does not know of, and what was lent for them', async () => {
    const { ticket } = await forked();
    startBetaAnew();
    alpha.remote.hostStarted('beta');
    await eventually(() => {
      const lost = { status: 'lost', reason: NEVER_STARTED };
      expect(ticket.slots).toMatchObject([lost, lost]);
      expect(alpha.snapshots).toEqual([]);
    });
  });

  it('is not asked for clones that are just being started there', async () => {
    const snapshot = await alpha.freeze();
    const ticket = alpha.ticket(2);
    const letPass = holdBack(alpha, 'startClones');
    const forking = alpha.fork(snapshot, ticket);
    await eventually(() => expect(snapshot.file.lentTo).toEqual(['beta']));
    alpha.remote.hostStarted('beta');
    await new Promise((resolve) => setTimeout(resolve, 20));
    letPass();
    expect(await forking).toMatchObject([{ status: 'fulfilled' }, { status: 'fulfilled' }]);
    expect(ticket.slots).toMatchObject([{ status: 'running' }, { status: 'running' }]);
    expect(snapshot.file.lentTo).toEqual(['beta']);
  });

  it('keeps what it has, and what it needs for that', async () => {
    const { snapshot, ticket } = await forked();
    alpha.remote.hostStarted('beta');
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(ticket.slots).toMatchObject([{ status: 'running' }, { status: 'running' }]);
    expect(snapshot.file.lentTo).toEqual(['beta']);
  });
});

it('what is needed again stays lent, though word comes late that it was not', async () => {
  const { id, snapshot, ticket } = await forked();
  snapshot.holders.add('a test');
  const letPass = holdBack(beta, 'letGo');
  const { there } = beta.wire;
  beta.wire.there = async (method) => {
    // On one connection what was said first is heard first.
    if (method === 'hold') {
      letPass();
      await new Promise(setImmediate);
    }
    await there(method);
  };
  beta.startPart = async (part) => {
    letPass();
    await new Promise(setImmediate);
    return beta.run(part);
  };
  beta.end(ticket.id, id, VALUE);
  await eventually(() => expect(beta.snapshots).toEqual([]));
  alpha.tickets.forget(ticket);
  const again = alpha.ticket(1);
  expect(await alpha.fork(snapshot, again)).toMatchObject([{ status: 'fulfilled' }]);
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(snapshot.file.lentTo).toEqual(['beta']);
});
