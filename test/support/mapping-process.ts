// A process that maps a file privately, as QEMU maps its RAM, and writes there what a test wants. Its memory is read
// from outside, as a freeze does.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { createInterface } from 'node:readline';
import { ZERO_PAGE } from '@snowfork/memserver';
import type { LayerStack } from '../../packages/clone-agent/src/freeze/layer-stack.js';
import {
  createTransferBuffer,
  PAGE_BYTES,
  ProcessMemory,
} from '../../packages/clone-agent/src/freeze/process-memory.js';

/**
 * Does what it is told, and answers `ok`: `fill PAGE COUNT SEED`, `load PAGE COUNT` (its kernel writes there),
 * `read PAGE`, `drop PAGE COUNT` (the pages are the file's again).
 */
const PROGRAM = `
import koffi from 'koffi';
import fs from 'node:fs';
import { createInterface } from 'node:readline';
const [path, bytes] = [process.argv[1], Number(process.argv[2])];
const libc = koffi.load('libc.so.6');
const mmap = libc.func('void *mmap(void *, size_t, int, int, int, long)');
const madvise = libc.func('int madvise(void *, size_t, int)');
const memory = Buffer.from(koffi.view(mmap(null, bytes, 3, 2, fs.openSync(path, 'r'), 0), bytes));
console.log('ok');
for await (const line of createInterface({ input: process.stdin })) {
  const [word, page, count, seed] = line.split(' ');
  if (word === 'fill') {
    for (let p = Number(page); p < Number(page) + Number(count); p++) {
      memory.fill(Number(seed), p * 4096, (p + 1) * 4096);
      if (seed !== '0') memory.writeUInt32LE(p, p * 4096 + 8);
    }
  }
  if (word === 'load') {
    const program = fs.openSync(process.execPath);
    fs.readSync(program, memory, Number(page) * 4096, Number(count) * 4096, 4096);
    fs.closeSync(program);
  }
  if (word === 'read') globalThis.last = memory[Number(page) * 4096];
  if (word === 'drop') {
    const from = memory.subarray(Number(page) * 4096, (Number(page) + Number(count)) * 4096);
    if (madvise(from, from.length, 4) !== 0) process.exit(1);
  }
  console.log('ok');
}
`;

export class MappingProcess {
  readonly process: ChildProcess;
  readonly #path: string;
  readonly #pages: number;
  readonly #answers: AsyncIterator<string>;

  static async start(path: string, pages: number): Promise<MappingProcess> {
    const started = new MappingProcess(path, pages);
    await started.#answers.next();
    return started;
  }

  private constructor(path: string, pages: number) {
    this.#path = path;
    this.#pages = pages;
    const parameters = ['--input-type=module', '-e', PROGRAM, path, String(pages * PAGE_BYTES)];
    this.process = spawn(process.execPath, parameters, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#answers = createInterface({ input: this.process.stdout! })[Symbol.asyncIterator]();
  }

  get pid(): number {
    return this.process.pid!;
  }

  async tell(words: string): Promise<void> {
    this.process.stdin!.write(`${words}\n`);
    const { value } = await this.#answers.next();
    if (value !== 'ok') throw new Error(`${words}: the process has ended`);
  }

  /** Its memory, read once and whole. */
  memory(): Buffer {
    const memory = new ProcessMemory({ pid: this.pid, path: this.#path });
    const buffer = createTransferBuffer(this.#pages);
    memory.readRange(0, this.#pages, buffer, 0);
    memory.close();
    return buffer.bytes;
  }

  async end(): Promise<void> {
    const { exitCode, signalCode } = this.process;
    const isGone = exitCode === null && signalCode === null ? once(this.process, 'exit') : null;
    this.process.kill('SIGKILL');
    await isGone;
  }
}

/** What a clone of the snapshot would see. */
export function contentOf(stack: LayerStack): Buffer {
  const layers = stack.layers.map((layer) => fs.readFileSync(layer.path));
  const content = Buffer.alloc(stack.map.entries.length * PAGE_BYTES);
  for (const [page, entry] of stack.map.entries.entries()) {
    if (entry === ZERO_PAGE) continue;
    const from = page * PAGE_BYTES;
    layers[entry - 1]!.copy(content, from, from, from + PAGE_BYTES);
  }
  return content;
}
