// Freezes that copy what was written since the newest snapshot, and no more: of a real process, asked by ptrace to
// have its writes tracked. Whatever is written, free, frozen in vain or forgotten in between, each snapshot shows the
// memory of its moment.

import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  type FrozenMemory,
  type MemoryFreeze,
  prepareFreeze,
} from '../../packages/clone-agent/src/freeze/freeze-memory.js';
import {
  LAYERS_OF_ONE_VM_MAX,
  type LayerStack,
} from '../../packages/clone-agent/src/freeze/layer-stack.js';
import {
  type PageRuns,
  ProcessMemory,
} from '../../packages/clone-agent/src/freeze/process-memory.js';
import {
  WriteTracker,
  whyNotTracked,
} from '../../packages/clone-agent/src/freeze/write-tracker.js';
import { contentOf, MappingProcess } from '../support/mapping-process.js';

const PAGE = 4096;
const PAGES = 1024;
const BASE_PAGES = 512;

/** What the next freeze finds to be free. */
const free = vi.hoisted(() => ({ pages: new Set<number>() }));
vi.mock('../../packages/clone-agent/src/freeze/free-pages.js', () => ({
  INTROSPECTION_PAGES_MAX: 1,
  findFreePages: ({ source }: { source: { pages: number } }) => {
    const isFree = new Uint8Array(source.pages);
    for (const page of free.pages) isFree[page] = 1;
    const freePages = free.pages.size;
    return { isFree, freePages, freeBlocks: 0, pagesRead: 0, listsLeft: 0, isComplete: true };
  },
}));

const describeTracked = describe.skipIf((await whyNotTracked()) !== undefined);

let folder: string;
let ramPath: string;
let child: MappingProcess;
let base: LayerStack;
let newest: { id: string; stack: LayerStack };
let tracker: WriteTracker;
let freezes = 0;

const tell = (words: string): Promise<void> => child.tell(words);
const startTracking = (): Promise<string | undefined> => tracker.start({ pid: child.pid, ramPath });

beforeEach(async () => {
  free.pages = new Set();
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'snowfork-writes-'));
  ramPath = path.join(folder, 'ram');
  fs.writeFileSync(ramPath, randomBytes(BASE_PAGES * PAGE));
  fs.truncateSync(ramPath, PAGES * PAGE);
  const entries = new Uint16Array(PAGES).fill(1, 0, BASE_PAGES);
  base = { map: { entries, layerCount: 1 }, layers: [{ id: 'base', path: ramPath }] };
  newest = { id: 'base', stack: base };
  tracker = new WriteTracker();
  child = await MappingProcess.start(ramPath, PAGES);
});

afterEach(async () => {
  await child.end();
  fs.rmSync(folder, { recursive: true, force: true });
});

function begin(): { id: string; freezing: MemoryFreeze } {
  const id = `s${++freezes}`;
  const freezing = prepareFreeze({
    ...{ pid: child.pid, ramPath, base, last: newest.stack },
    newLayer: { id, path: path.join(folder, id) },
    writes: { tracker, last: newest.id },
  });
  return { id, freezing };
}

/** Of the pause. */
type Moment = 'before' | 'after';
type Work = () => Promise<void>;

/** As `freezeVm` does it. */
async function freeze({
  before,
  after,
}: Partial<Record<Moment, Work>> = {}): Promise<FrozenMemory> {
  await startTracking();
  const { id, freezing } = begin();
  await before?.();
  freezing.run();
  await after?.();
  const frozen = await freezing.finish();
  newest = { id, stack: frozen };
  freezing.confirm(id);
  return frozen;
}

/** What a clone is to see: the memory, and zeros where it was free. */
function truth(): Buffer {
  const memory = Buffer.from(child.memory());
  for (const page of free.pages) memory.fill(0, page * PAGE, (page + 1) * PAGE);
  return memory;
}

function expectExact(frozen: LayerStack, expected = truth()): void {
  const content = contentOf(frozen);
  const wrong = Array.from({ length: PAGES }, (_, page) => page).filter((page) => {
    const [from, to] = [page * PAGE, (page + 1) * PAGE];
    return content.compare(expected, from, to, from, to) !== 0;
  });
  expect(wrong).toEqual([]);
}

/** Spoils what a layer has for the page: who compares with it stores the page anew. */
function spoil(layer: string, page: number): void {
  const file = fs.openSync(path.join(folder, layer), 'r+');
  fs.writeSync(file, Buffer.alloc(PAGE, 0xee), 0, PAGE, page * PAGE);
  fs.closeSync(file);
}

const userfaultfds = (): number =>
  fs
    .readdirSync(`/proc/${child.pid}/fd`)
    .filter((fd) => fs.readlinkSync(`/proc/${child.pid}/fd/${fd}`).includes('userfaultfd')).length;

describeTracked('a freeze that knows what was written (needs userfaultfd)', () => {
  it('looks at nothing else: what was not written is what the newest snapshot says', async () => {
    await tell('fill 0 600 1');
    await freeze();
    child.memory(); // who reads it from outside writes nothing
    await tell('fill 100 10 2');
    spoil(newest.id, 300);
    const second = await freeze();
    expect(second.counts).toMatchObject({
      privatePages: 600,
      referencedPages: 590,
      storedPages: 10,
    });
    // Where nobody knows what was written, all are compared.
    tracker = new WriteTracker();
    expect((await freeze()).counts).toMatchObject({ referencedPages: 599, storedPages: 1 });
    expectExact(newest.stack);
  });

  it("sees what a kernel writes, and pages that are the VM's own only since", async () => {
    await tell('fill 0 200 1');
    await freeze();
    await tell('load 50 20');
    await tell('load 900 5');
    await tell('fill 300 1 0');
    const second = await freeze();
    expect(second.counts).toMatchObject({ privatePages: 206, referencedPages: 180 });
    expectExact(second);
  });

  it('has zero for a page that was zero before, without looking at it', async () => {
    await tell('fill 0 20 0');
    await freeze();
    spoil('ram', 5);
    const second = await freeze();
    expect(second.counts).toMatchObject({ zeroPages: 20, storedPages: 0 });
  });

  it('copies what was free and is taken again, though nobody wrote it since', async () => {
    await tell('fill 10 20 1');
    free.pages = new Set([12, 13, 14]);
    await freeze();
    free.pages = new Set([14]);
    const second = await freeze();
    expect(second.counts).toMatchObject({ referencedPages: 17, storedPages: 2 });
    expectExact(second);
    free.pages = new Set();
    expectExact(await freeze());
  });

  it('forgets nothing in a freeze that fails, whenever that is', async () => {
    await tell('fill 10 20 1');
    await freeze();
    await tell('fill 10 5 2');
    begin().freezing.abandon();
    const { freezing } = begin();
    await tell('fill 12 5 3'); // after the first look
    freezing.run();
    freezing.abandon();
    const unconfirmed = begin();
    await tell('fill 20 1 4');
    unconfirmed.freezing.run();
    await unconfirmed.freezing.finish();
    const frozen = await freeze();
    expect(frozen.counts).toMatchObject({ referencedPages: 12, storedPages: 8 });
    expectExact(frozen);
  });

  it("misses no page that becomes the VM's own while it looks", async () => {
    await startTracking();
    const answers: Promise<void>[] = [];
    for (const scan of ['privatePages', 'takeWrittenPages'] as const) {
      const original = ProcessMemory.prototype[scan];
      vi.spyOn(ProcessMemory.prototype, scan).mockImplementation(function (this: ProcessMemory) {
        const found = original.call(this);
        const page = BASE_PAGES + answers.length;
        answers.push(tell(`fill ${page} 1 7`));
        while (child.memory()[page * PAGE] !== 7);
        return found as PageRuns;
      });
    }
    const { freezing } = begin();
    vi.restoreAllMocks();
    await Promise.all(answers);
    expect(answers.length).toBe(2);
    freezing.run();
    expectExact(await freezing.finish());
  });

  it('takes nothing for known when another snapshot is the newest', async () => {
    await tell('fill 10 20 1');
    await freeze();
    newest = { id: 'base', stack: base };
    expectExact(await freeze());
  });

  it('is as right under the next agent, which asks for nothing twice', async () => {
    await tell('fill 10 20 1');
    await freeze();
    await tell('fill 15 1 2');
    tracker = new WriteTracker();
    // Killed after the pause.
    await startTracking();
    begin().freezing.run();
    tracker = new WriteTracker();
    expectExact(await freeze());
    await tell('fill 16 1 2');
    const frozen = await freeze();
    expect(frozen.counts).toMatchObject({ referencedPages: 19, storedPages: 1 });
    expectExact(frozen);
    expect(userfaultfds()).toBe(1);
  });

  it('stores all afresh when the stack is as high as it may be', async () => {
    await tell('fill 0 100 1');
    const first = await freeze();
    const own = Array.from({ length: LAYERS_OF_ONE_VM_MAX }, (_, i) => ({
      id: `own-${i}`,
      path: first.layers[1]!.path,
    }));
    const map = { entries: first.map.entries, layerCount: own.length + 1 };
    newest = { id: newest.id, stack: { map, layers: [...base.layers, ...own] } };
    const frozen = await freeze();
    expect(frozen.counts).toMatchObject({ referencedPages: 0, storedPages: 100 });
    expectExact(frozen);
  });

  it('shows the file where pages were dropped', async () => {
    await tell('fill 10 20 1');
    await freeze();
    await tell('drop 12 3');
    expectExact(await freeze());
  });

  it('is exact after any writes, free pages, failures and deaths of agents', async () => {
    const run = fc.tuple(fc.nat(PAGES - 1), fc.integer({ min: 1, max: 80 }));
    const pages = ([first, count]: [number, number]) => Math.min(count, PAGES - first);
    const step = fc.oneof(
      { weight: 4, arbitrary: fc.tuple(fc.constant('fill'), run, fc.nat(9)) },
      { weight: 1, arbitrary: fc.tuple(fc.constant('load'), run, fc.nat(9)) },
      { weight: 1, arbitrary: fc.tuple(fc.constant('drop'), run, fc.nat(9)) },
      { weight: 2, arbitrary: fc.tuple(fc.constant('free'), run, fc.nat(9)) },
      { weight: 4, arbitrary: fc.tuple(fc.constant('freeze'), run, fc.nat(9)) },
      { weight: 2, arbitrary: fc.tuple(fc.constant('fail'), run, fc.nat(2)) },
      { weight: 1, arbitrary: fc.tuple(fc.constant('agent'), run, fc.nat(1)) },
    );
    const property = fc.asyncProperty(fc.array(step, { maxLength: 20 }), async (steps) => {
      await tell(`drop 0 ${PAGES}`);
      free.pages = new Set();
      newest = { id: 'base', stack: base };
      tracker = new WriteTracker();
      for (const [what, where, seed] of steps) {
        const [first] = where;
        const words = `${first} ${pages(where)} ${seed}`;
        if (what === 'fill' || what === 'load' || what === 'drop') await tell(`${what} ${words}`);
        if (what === 'free') {
          free.pages = new Set(seed < 3 ? [] : free.pages);
          for (let page = first; page < first + pages(where); page++) free.pages.add(page);
        }
        if (what === 'freeze') {
          let expected: Buffer | undefined;
          const frozen = await freeze({
            before: async () => {
              if (seed < 7) await tell(`fill ${words}`);
            },
            after: async () => {
              expected = truth();
              if (seed < 4) await tell(`fill ${first} 1 ${seed + 1}`);
            },
          });
          expectExact(frozen, expected);
        }
        if (what === 'fail') await failAt(seed, `fill ${words}`);
        if (what === 'agent') tracker = new WriteTracker();
        if (what === 'agent' && seed === 1) newest = { id: 'base', stack: base };
      }
    });
    await fc.assert(property, { numRuns: 60 });
  });

  async function failAt(stage: number, words: string): Promise<void> {
    await startTracking();
    const { freezing } = begin();
    await tell(words);
    if (stage > 0) freezing.run();
    if (stage > 1) await freezing.finish();
    else freezing.abandon();
  }
});

describe("where writes can't be tracked", () => {
  it('a freeze copies all, and it is said why', async () => {
    vi.stubEnv('PATH', '/nowhere');
    expect(await startTracking()).toMatch(/perl/);
    vi.unstubAllEnvs();
    await tell('fill 0 60 1');
    await freeze();
    await tell('fill 10 10 2');
    spoil(newest.id, 30);
    const frozen = await freeze();
    expect(frozen.counts).toMatchObject({ referencedPages: 49, storedPages: 11 });
    expectExact(frozen);
    expect(userfaultfds()).toBe(0);
  });

  it('as the process is traced by somebody else, the same', async () => {
    const tracer = spawn('perl', ['-e', SEIZE, String(child.pid)]);
    await once(tracer.stdout, 'data');
    expect(await startTracking()).toMatch(/ptrace/);
    await tell('fill 0 60 1');
    expectExact(await freeze());
    tracer.kill('SIGKILL');
  });
});

/** Traces all threads of a process. */
const SEIZE = `$| = 1; my ($pid) = @ARGV;
syscall(101, 0x4206, $_ + 0, 0, 0) for map { m{(\\d+)$} } glob "/proc/$pid/task/*";
print "here\\n"; sleep 1000;`;

describeTracked('a process that is asked to have its writes tracked (needs userfaultfd)', () => {
  const PREPARED = `use strict; use Time::HiRes 'nanosleep'; $| = 1;
use constant { SYS_POLL => 7, SYS_PPOLL => 271 };
my ($input, $polled, $mask) = ("\\1", pack('iss', 0, 1, 0), "\\0" x 8);
sub has_input { return select my $ready = $input, undef, undef, 0 }
print 'here';`;

  /** Asks a Perl program while it works, which it does until it has input; returns its last words. */
  async function disturb(work: string): Promise<string> {
    const victim = spawn('perl', ['-e', `${PREPARED} ${work} print 'there';`]);
    victim.stderr.pipe(process.stderr);
    await once(victim.stdout, 'data');
    let words = '';
    victim.stdout.setEncoding('utf8').on('data', (text: string) => {
      words += text;
    });
    const maps = fs.readFileSync(`/proc/${victim.pid}/maps`, 'latin1');
    const [, from, to] = /^([0-9a-f]+)-([0-9a-f]+) rw-p/m.exec(maps)!;
    const start = Number.parseInt(from!, 16);
    const range = [String(start), String(Number.parseInt(to!, 16) - start)];
    const script = path.resolve('packages/clone-agent/freeze/track-writes.pl');
    const asking = spawn('perl', ['-w', script, String(victim.pid), ...range], {
      stdio: 'inherit',
    });
    const [code] = await once(asking, 'close');
    expect(code).toBe(0);
    victim.stdin.end('go');
    const [ended] = await once(victim, 'close');
    expect(ended).toBe(0);
    return words;
  }

  it.each([
    ['reads', 'sysread STDIN, my $byte, 1;'],
    ['waits', '(select my $ready = $input, undef, undef, undef) == 1 or die;'],
    ['polls', 'syscall(SYS_POLL, $polled, 1, -1) == 1 or die;'],
    ['polls with a mask of signals', 'syscall(SYS_PPOLL, $polled, 1, 0, $mask, 8) == 1 or die;'],
    ['sleeps', 'until (has_input()) { nanosleep(2e7) >= 2e7 or die }'],
    ['computes', 'until (has_input()) { (map { $_ * 7 } 1 .. 1e4)[-1] == 7e4 or die }'],
  ])('goes on as if nothing had been when it %s', async (_, work) => {
    expect(await disturb(work)).toBe('there');
  });
});
