// Sandbox: code that nobody vouches for runs in a throw-away clone of a prepared VM. Each piece below
// does the harm that it can, as root of its clone; then the clone is ended with all it has forked, and
// the VM that it was made of is looked at: it holds what it held. Needs the image `minimal`.
// Arguments: [seconds that a piece may take]

import { connect, type Host, SnowforkError, type Vm } from '@snowfork/sdk';

/** What a piece may take; its clone is gone soon after. */
const PATIENCE_MS = Number(process.argv[2] ?? 4) * 1000;
const SECRET = 'prepared once, for all of them';

interface Piece {
  readonly name: string;
  readonly code: string;
}

const guestSide = '$(grep -lx sf-guestd /proc/[0-9]*/comm | cut -d / -f 3)';
const port = '/dev/$(basename $(dirname $(grep -l org.snowfork.0 /sys/class/virtio-ports/*/name)))';

const pieces: readonly Piece[] = [
  {
    name: 'does its work',
    code: 'sort /etc/passwd | head -n 1; sf-guest exit "$(wc -c </secret)"',
  },
  { name: 'forks processes', code: 'bomb() { bomb | bomb & }; bomb; sleep 60' },
  { name: 'forks VMs', code: 'while :; do sf-guest fork 2; done' },
  { name: 'fills its memory', code: `perl -e 'my @a; push @a, "x" x 1e6 while 1'` },
  { name: 'deletes all files', code: 'rm -rf /secret /root /usr /etc; echo gone' },
  { name: 'hands over garbage', code: 'head -c 300000 /dev/urandom | sf-guest exit --stdin' },
  { name: 'floods its output', code: 'yes' },
  { name: 'kills its init', code: 'echo c >/proc/sysrq-trigger' },
  { name: 'writes to its port', code: `kill -9 ${guestSide}; cat /dev/urandom >${port}` },
];

try {
  await main();
} catch (error) {
  if (!(error instanceof SnowforkError)) throw error;
  process.stderr.write(`${error.code}: ${error.message}\n`);
  process.exitCode = 1;
}

async function main(): Promise<void> {
  await using host = await connect();
  await using vm = await host.launch('minimal');
  await vm.writeFile('/secret', SECRET);
  for (const piece of pieces) {
    print(`${piece.name.padEnd(20)} ${await runApart(host, vm, piece)}`);
    const { stdout } = await vm.exec('cat /secret');
    if (stdout !== SECRET) throw new SnowforkError('SF_INTERNAL', `the parent holds "${stdout}"`);
  }
  print(`${vm.id} holds what it held; ${(await host.vms()).length} VM is left`);
}

/** Runs the code in a clone of `vm`, and says what became of it. */
async function runApart(host: Host, vm: Vm, { code }: Piece): Promise<string> {
  const { ticket, clones } = await vm.fork(1);
  const [clone] = clones;
  if (clone?.status !== 'fulfilled') throw clone?.reason ?? new Error('no clone');
  try {
    const outcome = await outcomeOf(clone.value, code);
    await endWithDescendants(host, clone.value);
    const [slot] = await host.join(ticket);
    if (slot?.status === 'exited') return `${outcome}; it handed over ${brief(slot.value)}`;
    return `${outcome}; ${slot?.status === 'lost' ? slot.reason : ''}`;
  } finally {
    await clone.value.kill();
  }
}

async function outcomeOf(clone: Vm, code: string): Promise<string> {
  let bytes = 0;
  try {
    const running = await clone.spawn(code, { timeoutMs: PATIENCE_MS });
    running.stderr.resume();
    // Read bit by bit and not kept: it may be without end.
    for await (const chunk of running.stdout) bytes += chunk.length;
    const { code: exitCode } = await running.exit;
    return `ended with ${exitCode}, ${bytes} bytes of output`;
  } catch (error) {
    // It is about to end by itself; then its end says how.
    await clone.wait({ timeoutMs: PATIENCE_MS / 4 }).catch(() => {});
    return `${SnowforkError.from(error).code}, ${bytes} bytes of output`;
  }
}

/** A clone may have forked: whoever descends from it goes too, until there is nobody left. */
async function endWithDescendants(host: Host, clone: Vm): Promise<void> {
  const condemned = new Set([clone.id]);
  for (let alive = 1; alive > 0; ) {
    alive = 0;
    for (const { id, parent, end } of await host.vms({ all: true })) {
      if (parent !== undefined && condemned.has(parent)) condemned.add(id);
      if (end !== undefined || !condemned.has(id)) continue;
      alive++;
      await (await host.vm(id)).kill();
    }
  }
}

function brief(value: unknown): string {
  const isBytes = value instanceof Uint8Array;
  return isBytes ? `${value.length} bytes` : JSON.stringify(value).slice(0, 60);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
