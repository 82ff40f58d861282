// What a fork promises whoever asks for it: counts, tickets, joins, and many who ask at once.

import http from 'node:http';
import path from 'node:path';
import type { Host, Vm } from '@snowfork/sdk';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import {
  clonesOf,
  describeVms,
  endAll,
  endVms,
  rejection,
  Steady,
  sh,
} from '../fixtures/guests.js';
import { eventually } from '../support/eventually.js';
import { testHost, testState } from '../support/test-host.js';

const COUNT_HELP = 'the number of clones is a whole number from 1 to 256';

describeVms('forks', () => {
  let host: Host;
  let vm: Vm;
  let steady: Steady;

  beforeAll(async () => {
    host = await testHost('minimal');
    vm = await host.launch('minimal');
    steady = await Steady.start(vm, { mebibytes: 2, who: 'parent' });
  });

  afterEach(async () => {
    if (host !== undefined) await endVms(host, [vm]);
  });

  afterAll(async () => {
    if (host === undefined) return;
    await endAll(host);
    await host.close();
  });

  /** All that a fork could leave. */
  async function everything(): Promise<unknown> {
    const vms = (await host.vms({ all: true })).map(({ id }) => id);
    return { vms, snapshots: (await host.snapshots()).map(({ id }) => id) };
  }

  it.each([0, -1, 1.5, 257, Number.NaN, Number.POSITIVE_INFINITY])(
    'of %d clones are refused by the host SDK, and nothing happens',
    async (count) => {
      const before = await everything();
      const { snapshot } = vm.initialInfo;
      for (const call of [vm.fork(count), host.createClones(snapshot, count)]) {
        const error = await rejection(call);
        expect(error).toMatchObject({ code: 'SF_BAD_REQUEST' });
        expect(error.message).toBe(`${COUNT_HELP}, not ${count}`);
      }
      expect(await everything()).toEqual(before);
    },
  );

  it.each(['0', '-1', '1.5', '257', 'NaN', '1e999', '"3"', 'null', '[3]'])(
    'of %s clones are refused by the API, and nothing happens',
    async (count) => {
      const before = await everything();
      for (const route of [`vms/${vm.id}/fork`, `snapshots/${vm.initialInfo.snapshot}/clones`]) {
        const { status, body } = await post(`/v1/${route}`, `{"clones":${count}}`);
        expect(status).toBe(400);
        expect(body).toMatchObject({ error: { code: 'SF_BAD_REQUEST' } });
      }
      expect(await everything()).toEqual(before);
    },
  );

  it('of any other number of clones are refused by sf-guest, and nothing happens', async () => {
    const before = await everything();
    const counts = ['0', '-1', '1.5', '257', 'NaN', "''", 'x'];
    const script = counts.map((count) => `sf-guest fork ${count}; echo $? >&2;`).join(' ');
    const { stdout, stderr } = await vm.exec(`${script} sf-guest ticket 0; echo $? >&2`);
    const refusal = expect.stringContaining(COUNT_HELP);
    expect(stderr.trimEnd().split('\n')).toEqual([...counts, '0'].flatMap(() => [refusal, '2']));
    expect(stdout).toBe('');
    expect(await everything()).toEqual(before);
  });

  it('of VMs that are not there, or have ended, are typed errors', async () => {
    const ended = await host.launch('minimal');
    await ended.kill();
    for (const call of [ended.fork(1), ended.checkpoint(), ended.exec('true'), ended.stats()]) {
      expect(await rejection(call)).toMatchObject({ code: 'SF_VM_GONE' });
    }
    const { status, body } = await post('/v1/vms/vm0/fork', '{"clones":1}');
    expect(status).toBe(404);
    expect(body).toMatchObject({ error: { code: 'SF_VM_NOT_FOUND' } });
    expect(await rejection(host.launch('no-such-image'))).toMatchObject({
      code: 'SF_IMAGE_NOT_FOUND',
    });
    for (const call of [host.join('t0'), host.killTicket('t0')]) {
      expect(await rejection(call)).toMatchObject({ code: 'SF_TICKET_NOT_FOUND' });
    }
  });

  it('by a ticket return its ids, 0 in the parent; a ticket serves one fork', async () => {
    const script = `
      ticket=$(sf-guest ticket 3) && echo "$ticket" && ticket=\${ticket%% *}
      sf-guest join "$ticket" 2>&1
      id=$(sf-guest clone "$ticket")
      [ "$id" = 0 ] || sf-guest exit "$id of $(hostname)"
      sf-guest join "$ticket"
      sf-guest clone "$ticket" 2>&1`;
    const { stdout } = await vm.exec(script);
    const [granted, early, ...rest] = stdout.trimEnd().split('\n');
    const ticket = granted!.split(' ')[0]!;
    expect(granted).toBe(`${ticket} 3`);
    expect(early).toContain('SF_BAD_REQUEST');
    const slots = await host.join(ticket);
    expect(rest.slice(0, 3)).toEqual(
      slots.map(({ cloneId, vm }) => `${cloneId} exited ${cloneId} of ${vm}`),
    );
    expect(rest[3]).toContain('SF_TICKET_USED');
  });

  it('by two programs of a guest and by the host, all at once, each get their own clones', async () => {
    const parent = await host.launch('minimal');
    const own = await Steady.start(parent, { mebibytes: 2, who: 'own' });
    const script = `
      for name in one two; do
        sf-guest fork 2 --ticket >/tmp/$name 2>/tmp/$name.error &
      done
      wait`;
    const [, byHost] = await Promise.all([sh(parent, script), parent.fork(2)]);
    const answers = (await sh(parent, 'cat /tmp/one /tmp/two')).split('\n');
    const tickets = answers.map((line) => line.split(' ')[1]!);
    expect(answers).toEqual(tickets.map((ticket) => `0 ${ticket} 2`));
    expect(new Set([...tickets, byHost.ticket.id]).size).toBe(3);
    expect(clonesOf(byHost)).toHaveLength(2);

    for (const ticket of tickets) {
      // The parent has its answer before its clones are there.
      const slots = await eventually(async () => {
        const slots = await host.join(ticket, { timeoutMs: 0 });
        expect(slots.map(({ vm }) => vm)).not.toContain(undefined);
        return slots;
      });
      for (const slot of slots) {
        expect(slot.status).toBe('running');
        const clone = await host.vm(slot.vm!);
        // Its program has its answer, whatever became of the other one's request.
        const answer = `${slot.cloneId} ${ticket} 2`;
        const look = `until grep -hx '${answer}' /tmp/one /tmp/two; do usleep 50000; done`;
        expect(await sh(clone, look)).toBe(answer);
        const inherited = own.inherited(clone);
        expect(await inherited.hash()).toBe(inherited.expectedHash());
      }
    }
    expect(await own.hash()).toBe(own.expectedHash());
  });

  it('have clones that take a command, and can be forked, as soon as they have an id', async () => {
    const known = new Set((await host.vms()).map(({ id }) => id));
    const watching = new AbortController();
    const { signal } = watching;
    let forking: Promise<unknown> | undefined;
    const onReady = () => {
      forking = vm.fork(1);
    };
    for await (const { kind, id } of host.watch({ signal, onReady })) {
      if (kind !== 'vm' || known.has(id)) continue;
      const clone = await host.vm(id);
      const [said, forked] = await Promise.all([sh(clone, 'hostname'), clone.fork(1)]);
      expect(said).toBe(id);
      expect(clonesOf(forked)).toHaveLength(1);
      break;
    }
    await forking;
  });

  it('during forks, of the same VM and of clones that have just come up, all succeed', async () => {
    const parent = await host.launch('minimal');
    const own = await Steady.start(parent, { mebibytes: 2, who: 'own' });
    const first = clonesOf(await parent.fork(2));
    const forks = await Promise.all(
      [parent, parent, parent, ...first].map(async (source) => clonesOf(await source.fork(1))),
    );
    const clones = [...first, ...forks.flat()];
    expect(new Set([parent, ...clones].map(({ id }) => id)).size).toBe(8);
    const inherited = clones.map((clone) => own.inherited(clone));
    await own.fill({ who: 'later' });
    for (const one of [own, ...inherited]) expect(await one.hash()).toBe(one.expectedHash());
  });

  it('outlive their parent: clones go on, and the host still joins them', async () => {
    const parent = await host.launch('minimal');
    const script = `
      id=$(sf-guest fork 2)
      [ "$id" = 0 ] && echo 0 && exit
      until [ -e /tmp/go ]; do usleep 50000; done
      sf-guest exit "$id went on"`;
    await sh(parent, script);
    // The parent's call returns before the clones are there.
    const clones = await eventually(async () => {
      const found = (await host.vms()).filter((other) => other.parent === parent.id);
      expect(found).toHaveLength(2);
      return found;
    });
    await parent.kill();
    for (const { id } of clones) await sh(await host.vm(id), 'echo >/tmp/go');
    const slots = await host.join(clones[0]!.ticket!);
    expect(slots).toMatchObject([
      { cloneId: 1, status: 'exited', value: '1 went on' },
      { cloneId: 2, status: 'exited', value: '2 went on' },
    ]);
    const [one] = slots;
    expect((await (await host.vm(one!.vm!)).info()).end).toMatchObject({ how: 'exited' });
  });

  it('are joined with a time-out while clones run, and ended by their ticket', async () => {
    const { ticket, clones } = await vm.fork(2);
    expect(await host.join(ticket, { timeoutMs: 10 })).toMatchObject([
      { cloneId: 1, status: 'running' },
      { cloneId: 2, status: 'running' },
    ]);
    const late = host.join(ticket);
    await host.killTicket(ticket);
    for (const slot of await late) {
      expect(slot).toMatchObject({ status: 'lost', reason: 'its ticket was killed' });
    }
    for (const clone of clonesOf({ clones } as never)) {
      expect((await clone.info()).state).toBe('ended');
    }
    await host.killTicket(ticket);
  });

  it('whose ticket is killed while they are under way leave no clone behind', async () => {
    const parent = await host.launch('minimal');
    const known = new Set((await host.vms({ all: true })).map(({ id }) => id));
    const outcome = parent.fork(6).catch((error: Error) => error);
    // The ticket's id is told by the first clone that is listed.
    let ticket: string | undefined;
    await eventually(async () => {
      ticket = (await host.vms()).find(({ id }) => !known.has(id))?.ticket;
      expect(ticket).toBeDefined();
    });
    await host.killTicket(ticket!);
    await outcome;
    for (const slot of await host.join(ticket!)) expect(slot.status).toBe('lost');
    const left = (await host.vms()).filter((other) => other.ticket === ticket);
    expect(left).toEqual([]);
  });

  it('of a parent that is killed meanwhile fail, or their clones are whole', async () => {
    for (const afterMs of [0, 5, 15, 30, 60, 120]) {
      const parent = clonesOf(await vm.fork(1))[0]!;
      const own = steady.inherited(parent);
      const outcome = parent.fork(2).catch((error: unknown) => error);
      await new Promise((resolve) => setTimeout(resolve, afterMs));
      await parent.kill();
      const result = await outcome;
      if (result instanceof Error) continue;
      for (const clone of (result as Awaited<ReturnType<Vm['fork']>>).clones) {
        if (clone.status === 'rejected') continue;
        expect(await own.inherited(clone.value).hash()).toBe(own.expectedHash());
        await clone.value.kill();
      }
    }
  });
});

async function post(route: string, body: string): Promise<{ status: number; body: unknown }> {
  return await new Promise((resolve, reject) => {
    const socketPath = path.join(testState, 'agent.sock');
    const headers = { 'content-type': 'application/json' };
    const request = http.request({ socketPath, path: route, method: 'POST', headers });
    request.once('error', reject);
    request.once('response', (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk) => {
        text += chunk;
      });
      response.once('end', () =>
        resolve({ status: response.statusCode ?? 0, body: JSON.parse(text) }),
      );
    });
    request.end(body);
  });
}
