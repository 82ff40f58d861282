// A process that is kept alive: commands reach whichever lives, also when only the connection to it
// was lost.

import { once } from 'node:events';
import fs from 'node:fs';
import type net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { listenForCommands } from '@snowfork/memserver/control';
import pino from 'pino';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ProcessJournal } from '../../packages/clone-agent/src/store/processes.js';
import { KeptProcess } from '../../packages/clone-agent/src/system/kept-process.js';
import type {
  ListeningProcess,
  ProcessExit,
} from '../../packages/clone-agent/src/system/listening-process.js';

let folder: string;
let socketPath: string;
let started: FakeProcess[];
let kept: KeptProcess;

/** Listens as a process would, and ends when it is told. */
class FakeProcess implements ListeningProcess {
  readonly pid = process.pid;
  readonly exited: Promise<ProcessExit>;
  readonly connections: net.Socket[] = [];
  readonly #end: (exit: ProcessExit) => void;
  readonly #server: net.Server;

  static async start(): Promise<FakeProcess> {
    const name = started.length;
    const made = new FakeProcess(await listenForCommands(socketPath, { who: () => ({ name }) }));
    started.push(made);
    return made;
  }

  private constructor(server: net.Server) {
    this.#server = server.on('connection', (socket) => this.connections.push(socket));
    let end!: (exit: ProcessExit) => void;
    this.exited = new Promise((resolve) => {
      end = resolve;
    });
    this.#end = end;
  }

  async stop(): Promise<ProcessExit> {
    this.dropConnections();
    this.#server.close();
    const exit = { code: 0, signal: null };
    this.#end(exit);
    return exit;
  }

  dropConnections(): void {
    for (const socket of this.connections.splice(0)) socket.destroy();
  }
}

beforeEach(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-kept-'));
  socketPath = path.join(folder, 'socket');
  started = [];
  kept = await KeptProcess.open({
    peer: { peer: 'the process', errorCode: 'SF_INTERNAL' },
    socketPath,
    log: pino({ level: 'silent' }),
    journal: new ProcessJournal(path.join(folder, 'processes')),
    start: () => FakeProcess.start(),
  });
});
afterEach(async () => {
  await kept.stop();
  fs.rmSync(folder, { recursive: true });
});

test('a connection that is lost is made again, and the process stays', async () => {
  for (let times = 0; times < 3; times += 1) {
    expect(await kept.execute('who', {})).toEqual({ name: 0 });
    const [connection] = started[0]!.connections;
    const closed = once(connection!, 'close');
    started[0]!.dropConnections();
    await closed;
  }
  expect(await kept.execute('who', {})).toEqual({ name: 0 });
  expect(started.length).toBe(1);
});

test('a process that ends while its connection is made again has one successor', async () => {
  started[0]!.dropConnections();
  const answer = kept.execute('who', {});
  await new Promise((resolve) => setTimeout(resolve, 20));
  await started[0]!.stop();
  expect(await answer).toEqual({ name: 1 });
  expect(await kept.execute('who', {})).toEqual({ name: 1 });
  expect(started.length).toBe(2);
});

test('one that is stopped while its connection is made again ends', async () => {
  started[0]!.dropConnections();
  await new Promise((resolve) => setTimeout(resolve, 20));
  await kept.stop();
  expect(await started[0]!.exited).toEqual({ code: 0, signal: null });
  await expect(kept.execute('who', {})).rejects.toThrow('stopped');
});
