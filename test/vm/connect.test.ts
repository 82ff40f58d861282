// `vm.connect()`: streams to servers inside a guest, and what programs of the host do with them. The
// server is a few lines of Perl, so that the smallest image has it.

import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import { buffer, text } from 'node:stream/consumers';
import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { clonesOf, describeVms, endAll, MiB, rejection, sh } from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { testHost } from '../support/test-host.js';

const PORT = 8080;
const SOCKET = '/run/echo.sock';

/** A child for each connection: what it gets goes back; `who` in a line of its own asks who it is. */
const SERVER = `
  use v5.36; use IO::Socket::INET; use IO::Socket::UNIX;
  $SIG{CHLD} = 'IGNORE';
  my $server = $ARGV[0] =~ m{/}
    ? IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 16)
    : IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], Listen => 16);
  $server or die "$ARGV[0]: $!\\n";
  while (my $peer = $server->accept) {
    next if fork;
    while (sysread $peer, my $bytes, 65_536) {
      open my $file, '<', '/proc/sys/kernel/hostname';
      $bytes = <$file> if $bytes eq "who\\n";
      while ($bytes ne '') { substr $bytes, 0, syswrite($peer, $bytes), ''; }
    }
    exit;
  }`;

/** Answers as often as it is asked, on one connection. */
const HTTP_SERVER = `
  while read -r line; do
    case $line in [![:space:]]*) continue ;; esac
    printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nyes'
  done`;

describeVms('a connection into a guest', () => {
  let host: Host;
  let vm: Vm;

  beforeAll(async () => {
    host = await testHost('minimal');
    vm = await host.launch('minimal');
    await vm.writeFile('/root/server.pl', SERVER);
    for (const address of [PORT, SOCKET]) {
      await sh(vm, `setsid perl /root/server.pl ${address} </dev/null >/dev/null 2>&1 &`);
    }
    for (const address of [PORT, SOCKET]) await untilListening(address);
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  async function untilListening(target: number | string): Promise<void> {
    await eventually(async () => {
      (await vm.connect(target)).destroy();
    });
  }

  it.each([PORT, SOCKET])('to %s carries bytes both ways, whole, and ends', async (target) => {
    const bytes = randomBytes(3 * MiB);
    const connection = await vm.connect(target);
    connection.end(bytes);
    const answer = await buffer(connection);
    expect(createHash('sha256').update(answer).digest('hex')).toBe(
      createHash('sha256').update(bytes).digest('hex'),
    );
    await eventually(() => expect(connection.closed).toBe(true));
    expect(await sh(vm, 'ps | grep -c "[s]f-guest connect" || true')).toBe('0');
  });

  it('is refused with the guest’s words', async () => {
    const refused = await rejection(vm.connect(9));
    expect(refused).toMatchObject({ code: 'SF_BAD_REQUEST' });
    expect(refused.message).toBe('no connection to 9 in the guest: 9: Connection refused');
    expect((await rejection(vm.connect('/no/socket'))).message).toContain('No such file');
    expect(await rejection(vm.connect(0))).toMatchObject({ code: 'SF_BAD_REQUEST' });
    const late = await rejection(vm.connect(PORT, { timeoutMs: 0 }));
    expect(late).toMatchObject({ code: 'SF_TIMEOUT' });
    const aborted = await rejection(vm.connect(PORT, { signal: AbortSignal.abort() }));
    expect(aborted).toMatchObject({ code: 'SF_ABORTED' });
  });

  it('leads to the VM that was asked for: parent and clones have a server each', async () => {
    const clones = clonesOf(await vm.fork(2));
    const names = await Promise.all(
      [vm, ...clones].map(async (each) => {
        await using connection = await each.connect(PORT);
        connection.write('who\n');
        const [name] = await once(connection, 'data');
        return [String(name).trim(), (await each.exec('hostname')).stdout.trim()];
      }),
    );
    for (const [told, real] of names) expect(told).toBe(real);
    expect(new Set(names.map(([told]) => told)).size).toBe(3);
    for (const clone of clones) await clone.kill();
  });

  it('goes on in the parent while that is forked, and fails when its VM ends', async () => {
    const connection = await vm.connect(PORT);
    const said = (async () => {
      let bytes = '';
      for await (const chunk of connection) bytes += chunk;
      return bytes;
    })();
    connection.write('before ');
    const [clone] = clonesOf(await vm.fork(1));
    connection.write('after');
    const fromClone = rejection(text(await clone!.connect(PORT)));
    await clone!.kill();
    expect(await fromClone).toMatchObject({ code: 'SF_VM_GONE' });
    connection.end();
    expect(await said).toBe('before after');
  });

  it('serves an http.Agent, one connection for many requests', async () => {
    await vm.writeFile('/root/http.sh', HTTP_SERVER);
    await sh(vm, 'setsid busybox nc -ll -p 8081 -e sh /root/http.sh </dev/null >/dev/null 2>&1 &');
    await untilListening(8081);
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    let connections = 0;
    agent.createConnection = (_options, done) => {
      connections += 1;
      void vm.connect(8081).then((connection) => done!(null, connection));
      return undefined;
    };
    for (let count = 0; count < 3; count++) {
      const request = http.get({ agent });
      const [response] = (await once(request, 'response')) as [http.IncomingMessage];
      expect(await text(response)).toBe('yes');
    }
    expect(connections).toBe(1);
    agent.destroy();
  });
});
