// A memory server that serves many replicas tells the process that fetches their pages what is wanted of
// them by one connection: others need the control socket, too. By loopback: needs no root.

import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { HeldPages, PAGE_BYTES, PageNetwork, PageService } from '@snowfork/memserver';
import { expect, test } from 'vitest';
import { CONTROL_CONNECTIONS_MAX } from '../../packages/memserver/src/control.js';
import { eventually } from '../support/eventually.js';

const ADDRESS = '127.0.0.1';
const REPLICAS = CONTROL_CONNECTIONS_MAX + 4;
const complain = () => undefined;
const sink = {
  onPage: () => undefined,
  onZeroPage: () => undefined,
  onLost: () => undefined,
  isHeld: () => false,
};

test('what is wanted of many replicas is told by one connection', async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-lines-'));
  const socket = path.join(folder, 'socket');
  const file = path.join(folder, 'layer');
  const held = `${file}.held`;
  fs.writeFileSync(file, Buffer.alloc(PAGE_BYTES));
  HeldPages.create(held, 1);
  let text = '';
  let connections = 0;
  const fetcher = net.createServer((peer) => {
    connections += 1;
    peer.on('data', (chunk) => {
      text += String(chunk);
    });
  });
  fetcher.listen(socket);
  await once(fetcher, 'listening');
  const linkBytesPerSecond = 125_000_000;
  const of = { address: ADDRESS, port: 0, linkBytesPerSecond, complain };
  const service = await PageService.open(of);
  const network = await PageNetwork.open({ localAddress: ADDRESS, complain });
  try {
    for (let number = 0; number < REPLICAS; number += 1) {
      const [snapshot, key] = [`s${number}`, randomBytes(32)];
      service.serve({ snapshot, key, layers: [{ path: file, held }], wants: { socket, snapshot } });
      const client = await network.connect(
        { address: ADDRESS, port: service.port, key },
        { sink, lostAfterMs: 60_000 },
      );
      client.demand(0, 0);
    }
    await eventually(() => {
      for (let number = 0; number < REPLICAS; number += 1) expect(text).toContain(`"s${number}"`);
    });
    expect(connections).toBe(1);
  } finally {
    await network.close();
    await service.close();
    fetcher.close();
    fs.rmSync(folder, { recursive: true });
  }
});
