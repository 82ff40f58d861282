// A web server that forks when load rises. It runs in a VM, warmed up: it has a table that took its time
// to make. A balancer on the host hands requests to it; when they pile up it asks the server to fork, and
// each clone of the VM is a worker that has the table from its first moment on. When load falls workers
// are let go: they get no more requests, answer those they have, and exit. No request is lost.
//
//   load generator → balancer ─┬─ vm.connect → server in the parent VM
//                              └─ vm.connect → the same server in a clone, …
//
// One file for both sides: on the host it copies itself into a VM and runs there as `serve`. Clones have
// no network of their own yet, so requests reach them by `vm.connect`, over the VM's port.
// Arguments: [workers at most] [requests while it is busy]; `--json` prints the results as JSON.

import { once } from 'node:events';
import fs from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Host, Vm } from '@snowfork/sdk';

const PORT = 8080;
const PRIMES_BELOW = 300_000;

/** Requests that a VM has at a time: one that it works on, and the next. */
const REQUESTS_PER_VM = 2;
/** One VM for every so many requests that are in the house. */
const DEMAND_PER_VM = 3;
const TICK_MS = 250;
/** Ticks for which there must have been one worker too many before one is let go. */
const PATIENCE_TICKS = 4;
const CLONE_TIMEOUT_MS = 60_000;
const LEAVE_TIMEOUT_MS = 10_000;
const BUSY_CONNECTIONS = 12;
const CALM_REQUESTS = 20;
const ROUNDS_MAX = 50;

// --- In the VM ---------------------------------------------------------------------------------

/** Answers `GET /factors/N`; `POST /fork` makes a worker, `POST /leave` ends one. */
async function serve(): Promise<void> {
  const { sf } = await import('@snowfork/sdk/guest');
  const primes = primesBelow(PRIMES_BELOW);
  let served = 0;
  const server = http.createServer((request, response) => {
    if (request.url === '/fork') return void fork(response);
    // It hands over its count, and its VM ends.
    if (request.url === '/leave') return void sf.exit(served);
    served += 1;
    response.end(JSON.stringify(factors(Number(request.url?.split('/')[2]), primes)));
  });
  async function fork(response: http.ServerResponse): Promise<void> {
    const forked = await sf.fork(1).catch((error: Error) => error);
    if (forked instanceof Error) response.writeHead(503).end(forked.message);
    // A clone just goes on with what this server does.
    else if (forked.id === 0) response.end(forked.ticket.id);
  }
  // The copies of the parent's connections lead nowhere; those who asked are answered by the parent.
  sf.onFork(({ role }) => {
    if (role === 'parent') return;
    server.closeAllConnections();
    served = 0;
  });
  // The balancer ends connections: a server that does so may miss a request that is on its way.
  server.keepAliveTimeout = 0;
  server.listen(PORT, '127.0.0.1', () => process.stdout.write('listening\n'));
}

function factors(n: number, primes: readonly number[]): number[] {
  const found: number[] = [];
  for (const prime of primes) for (; n % prime === 0; n /= prime) found.push(prime);
  return found;
}

function primesBelow(limit: number): number[] {
  const isComposite = new Uint8Array(limit);
  const primes: number[] = [];
  for (let n = 2; n < limit; n++) {
    if (isComposite[n]) continue;
    primes.push(n);
    for (let multiple = n * n; multiple < limit; multiple += n) isComposite[multiple] = 1;
  }
  return primes;
}

// --- On the host -------------------------------------------------------------------------------

async function main(): Promise<void> {
  const { connect } = await import('@snowfork/sdk');
  const words = process.argv.slice(2).filter((word) => !word.startsWith('--'));
  const [workersMax = 3, busyRequests = 600] = words.map(Number);
  await using host = await connect();
  await using vm = await host.launch('node');
  await vm.writeFile('/root/server.mjs', fs.readFileSync(fileURLToPath(import.meta.url)));
  await using program = await vm.spawn(['node', '/root/server.mjs', 'serve'], { stdin: false });
  program.stderr.pipe(process.stderr);
  await once(program.stdout, 'data');

  await using balancer = new Balancer(host, vm, workersMax);
  const url = await balancer.listen();
  const loads = [await load(url, 1, CALM_REQUESTS)];
  // Again, where all are answered before the workers are there, or before those have gone.
  for (let round = 0; balancer.peak < workersMax && round < ROUNDS_MAX; round++)
    loads.push(await load(url, BUSY_CONNECTIONS, busyRequests));
  for (let round = 0; round === 0 || (balancer.latest > 0 && round < ROUNDS_MAX); round++)
    loads.push(await load(url, 1, CALM_REQUESTS));
  const { timeline, members } = balancer;
  const report = { loads, timeline, members: members.map((member) => member.report()) };
  process.stdout.write(process.argv.includes('--json') ? JSON.stringify(report) : told(report));
}

/** A VM that serves. */
class Member {
  readonly vm: Vm;
  /** Connections into the VM, kept from one request to the next. */
  readonly agent = new http.Agent({ keepAlive: true, maxSockets: REQUESTS_PER_VM });
  inFlight = 0;
  answered = 0;
  isLeaving = false;
  /** What a worker counted itself, when it has left. */
  counted: unknown;

  constructor(vm: Vm) {
    this.vm = vm;
    this.agent.createConnection = (_options, done) => {
      vm.connect(PORT).then(
        (connection) => done!(null, connection),
        (error) => done!(error, undefined as never),
      );
      return undefined;
    };
  }

  report() {
    return { vm: this.vm.id, answered: this.answered, counted: this.counted };
  }
}

interface Job {
  readonly request: http.IncomingMessage;
  readonly response: http.ServerResponse;
}

class Balancer {
  /** All that ever served; the first is the parent. */
  readonly members: Member[];
  readonly timeline: { seconds: number; workers: number; demand: number; perSecond: number }[] = [];
  readonly #host: Host;
  readonly #workersMax: number;
  readonly #waiting: Job[] = [];
  readonly #server = http.createServer((request, response) => this.#take({ request, response }));
  readonly #stopping = new AbortController();
  #ticking: Promise<void> = Promise.resolve();
  #changing: Promise<void> | undefined;
  #calmTicks = 0;

  constructor(host: Host, parent: Vm, workersMax: number) {
    this.#host = host;
    this.members = [new Member(parent)];
    this.#workersMax = workersMax;
  }

  async listen(): Promise<string> {
    await once(this.#server.listen(0, '127.0.0.1'), 'listening');
    this.#ticking = this.#tick();
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Those that take requests, without the parent. */
  get workers(): number {
    return this.#serving().length - 1;
  }

  /** The most workers that there were at a time. */
  get peak(): number {
    return Math.max(0, ...this.timeline.map(({ workers }) => workers));
  }

  /** The workers of the timeline's end. */
  get latest(): number {
    return this.timeline.at(-1)?.workers ?? 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort();
    await this.#ticking;
    await this.#changing;
    this.#server.close();
    for (const { agent } of this.members) agent.destroy();
    for (const { vm } of this.members.slice(1)) await vm[Symbol.asyncDispose]();
  }

  #serving(): Member[] {
    return this.members.filter(({ isLeaving }) => !isLeaving);
  }

  #take(job: Job): void {
    this.#waiting.push(job);
    this.#handOut();
  }

  /** To whoever has least to do. */
  #handOut(): void {
    while (this.#waiting.length > 0) {
      const free = this.#serving().filter(({ inFlight }) => inFlight < REQUESTS_PER_VM);
      if (free.length === 0) return;
      const member = free.reduce((a, b) => (b.inFlight < a.inFlight ? b : a));
      void this.#forward(member, this.#waiting.shift()!);
    }
  }

  async #forward(member: Member, { request, response }: Job): Promise<void> {
    member.inFlight += 1;
    try {
      const { headers } = request;
      const [method, path] = [request.method!, request.url!];
      const asked = http.request({ agent: member.agent, method, path, headers });
      request.pipe(asked);
      const [answer] = (await once(asked, 'response')) as [http.IncomingMessage];
      const chunks = await answer.toArray();
      response.writeHead(answer.statusCode!, answer.headers).end(Buffer.concat(chunks));
      member.answered += 1;
    } catch (error) {
      this.#failed(member, { request, response }, error as Error);
    } finally {
      member.inFlight -= 1;
      this.#handOut();
    }
  }

  /** A worker that has crashed is one the less; what only asks is asked again, of another. */
  #failed(member: Member, job: Job, error: Error): void {
    if (member !== this.members[0]) member.isLeaving = true;
    const mayAskAgain = job.request.method === 'GET' && member !== this.members[0];
    if (mayAskAgain) this.#waiting.unshift(job);
    else job.response.writeHead(502).end(error.message);
  }

  async #tick(): Promise<void> {
    const startedAt = performance.now();
    let answeredBefore = 0;
    while (!this.#stopping.signal.aborted) {
      await sleep(TICK_MS, undefined, { signal: this.#stopping.signal }).catch(() => {});
      const answered = this.members.reduce((sum, member) => sum + member.answered, 0);
      const demand = this.members.reduce(
        (sum, { inFlight }) => sum + inFlight,
        this.#waiting.length,
      );
      this.timeline.push({
        seconds: (performance.now() - startedAt) / 1000,
        workers: this.workers,
        demand,
        perSecond: ((answered - answeredBefore) * 1000) / TICK_MS,
      });
      answeredBefore = answered;
      const wanted = Math.ceil(demand / DEMAND_PER_VM) - 1;
      this.#adapt(Math.max(0, Math.min(this.#workersMax, wanted)));
    }
  }

  #adapt(wanted: number): void {
    this.#calmTicks = this.workers > wanted ? this.#calmTicks + 1 : 0;
    if (this.#changing !== undefined) return;
    const isCalm = this.#calmTicks >= PATIENCE_TICKS;
    if (!isCalm && this.workers >= wanted) return;
    if (isCalm) this.#calmTicks = 0;
    const change = isCalm ? this.#letGo(this.#serving().at(-1)!) : this.#grow();
    this.#changing = change
      .catch((error: Error) => void process.stderr.write(`${error.message}\n`))
      .finally(() => {
        this.#changing = undefined;
      });
  }

  async #grow(): Promise<void> {
    const ticket = await post(this.members[0]!, '/fork');
    const deadline = AbortSignal.timeout(CLONE_TIMEOUT_MS);
    for (;;) {
      const [slot] = await this.#host.join(ticket, { timeoutMs: 0, signal: deadline });
      if (slot?.status === 'lost') throw new Error(`a worker was lost: ${slot.reason}`);
      const vm = slot?.vm === undefined ? undefined : await this.#host.vm(slot.vm);
      if (vm?.initialInfo.state === 'running') return this.#add(new Member(vm));
      await sleep(TICK_MS / 5);
    }
  }

  #add(member: Member): void {
    this.members.push(member);
    this.#handOut();
  }

  async #letGo(worker: Member): Promise<void> {
    worker.isLeaving = true;
    while (worker.inFlight > 0) await sleep(TICK_MS / 5);
    // Nobody answers: the VM ends, and its count is what it leaves.
    post(worker, '/leave').catch(() => {});
    const end = await worker.vm.wait({ timeoutMs: LEAVE_TIMEOUT_MS });
    if (end.how === 'exited') worker.counted = end.value;
    worker.agent.destroy();
  }
}

async function post(member: Member, path: string): Promise<string> {
  const asked = http.request({ agent: member.agent, method: 'POST', path }).end();
  const [answer] = (await once(asked, 'response')) as [http.IncomingMessage];
  const text = Buffer.concat(await answer.toArray()).toString();
  if (answer.statusCode !== 200) throw new Error(`${path}: ${text}`);
  return text;
}

interface Load {
  readonly connections: number;
  readonly sent: number;
  /** Answers that were right. */
  readonly right: number;
  readonly errors: number;
  readonly perSecond: number;
}

/** So many requests for the factors of products of two primes, which are known here. */
async function load(url: string, connections: number, amount: number): Promise<Load> {
  // @ts-expect-error: the package comes without types
  const { default: autocannon } = await import('autocannon');
  const primes = primesBelow(PRIMES_BELOW);
  let right = 0;
  const requests = Array.from({ length: 97 }, (_, index) => {
    const known = [
      primes[(index * 7919) % primes.length]!,
      primes[(index * 104_729 + 1) % primes.length]!,
    ];
    const expected = JSON.stringify(known.sort((a, b) => a - b));
    return {
      path: `/factors/${known[0]! * known[1]!}`,
      onResponse: (status: number, body: string) => {
        if (status === 200 && body === expected) right += 1;
      },
    };
  });
  const result = await autocannon({ url, connections, amount, requests, timeout: 60 });
  return {
    connections,
    sent: result.requests.sent,
    right,
    errors: result.errors + result.non2xx,
    perSecond: result.requests.total / result.duration,
  };
}

function told({
  loads,
  timeline,
  members,
}: Pick<Balancer, 'timeline'> & { loads: Load[]; members: object[] }): string {
  const lines = ['  seconds  workers  in the house  answers/s'];
  // A line for every second, and for every change.
  for (const [tick, { seconds, workers, demand, perSecond }] of timeline.entries()) {
    if (tick % 4 !== 0 && timeline[tick - 1]!.workers === workers) continue;
    const columns = [
      seconds.toFixed(1).padStart(9),
      workers,
      String(demand).padStart(13),
      perSecond.toFixed(0).padStart(10),
    ];
    lines.push(columns.map((column) => String(column).padStart(8)).join(' '));
  }
  lines.push('', 'VM by VM: answers that the balancer had of it, and what it counted itself');
  for (const member of members) lines.push(`  ${JSON.stringify(member)}`);
  const sum = (pick: (load: Load) => number) =>
    loads.reduce((total, load) => total + pick(load), 0);
  const [calm, busy] = loads.map(({ perSecond }) => perSecond.toFixed(1));
  lines.push('', `requests per second: ${calm} from 1 client, ${busy} from ${BUSY_CONNECTIONS}`);
  lines.push(
    `${sum((load) => load.sent)} requests, ${sum((load) => load.right)} right answers, ${sum((load) => load.errors)} errors`,
  );
  return `${lines.join('\n')}\n`;
}

if (process.argv[2] === 'serve') await serve();
else await main();
