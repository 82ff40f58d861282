// A VM by QEMU alone, with the kernel and the disk of Snowfork's image but without Snowfork: what a
// user would start by hand. The guest side in it answers through its port as in any guest.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { encodeFrame, FLAG_END, type Frame, FrameReader, FrameType } from '@snowfork/sdk/api';
import {
  connectQmp,
  guestFolder,
  hashImage,
  type NetHost,
  type PreparedImage,
  parseImageFile,
  parseMemory,
  prepareImage,
  type Qmp,
  sdkFolder,
} from './agent-parts.js';
import { imageFile, stateFolder } from './bench-host.js';

const BOOT_TIMEOUT_MS = 180_000;
const ANSWER_TIMEOUT_MS = 120_000;
const MIGRATION_POLL_MS = 5;
/** QEMU's own limit is 128 MiB/s. */
const UNLIMITED_BYTES_PER_S = 1e12;
const MIGRATION_TIMEOUT_MS = 300_000;

/** Kernel, initramfs and disk, kept beside the bench's images until the image's file changes. */
export async function prepareParts(
  memory: string,
  say: (words: string) => void,
): Promise<PreparedImage> {
  const spec = { ...(await parseImageFile(imageFile)), memoryBytes: parseMemory(memory) };
  const hash = await hashImage(spec, { guestFolder, sdkFolder });
  const folder = path.join(stateFolder, 'plain');
  const description = path.join(folder, 'prepared.json');
  const kept = readJson(description) as { hash: string; prepared: PreparedImage } | undefined;
  if (kept?.hash === hash && fs.existsSync(kept.prepared.kernelPath)) return kept.prepared;
  say('preparing kernel and disk for the plain QEMU');
  const prepared = await prepareImage({
    spec,
    cacheFolder: path.join(stateFolder, 'cache'),
    workFolder: folder,
    guestFolder,
    sdkFolder,
    onProgress: () => {},
    signal: new AbortController().signal,
  });
  fs.writeFileSync(description, JSON.stringify({ hash, prepared }));
  return prepared;
}

function readJson(file: string): unknown {
  return fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : undefined;
}

export interface PlainQemuOptions {
  readonly prepared: PreparedImage;
  readonly binary: string;
  readonly machineType: string;
  readonly accelerator: string;
  readonly cpuModel: string;
  /** For its sockets. */
  readonly folder: string;
  /** Its network is that of this host; otherwise the machine's. */
  readonly host?: NetHost;
  /** Wait for `restore` or `listen` instead of booting. */
  readonly incoming?: boolean;
}

export class PlainQemu {
  readonly #process: ChildProcess;
  readonly #qmp: Qmp;
  readonly #port: GuestPort;
  #lastStream: number = COMMAND_STREAM;

  static async start(options: PlainQemuOptions): Promise<PlainQemu> {
    fs.mkdirSync(options.folder, { recursive: true });
    const socket = (name: string) => path.join(options.folder, `${name}.sock`);
    // It ends with the bench, whatever ends that.
    const enter = options.host === undefined ? [] : ['nsenter', `--net=${options.host.namespace}`];
    const command = [...enter, options.binary, ...plainArguments(options, socket)];
    const qemu = spawn('setpriv', ['--pdeathsig', 'KILL', ...command], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    const ended = new AbortController();
    qemu.once('exit', (code) => ended.abort(new Error(`the plain QEMU ended with code ${code}`)));
    const qmp = await connectQmp(socket('qmp'), { signal: ended.signal });
    return new PlainQemu(qemu, qmp, await GuestPort.connect(socket('port')));
  }

  private constructor(qemu: ChildProcess, qmp: Qmp, port: GuestPort) {
    this.#process = qemu;
    this.#qmp = qmp;
    this.#port = port;
  }

  /** Until the guest side says that it is ready. */
  async booted(): Promise<void> {
    await this.#port.next((frame) => frame.type === FrameType.hello, BOOT_TIMEOUT_MS);
  }

  /** Runs a command that ends only with the VM; resolves with its first output. */
  async startCommand(command: readonly string[], stdin: string): Promise<string> {
    const strings = ['', String(command.length), ...command, 'LC_ALL=C'];
    const payload = Buffer.from(strings.map((text) => `${text}\0`).join(''));
    this.#port.send(encodeFrame(FrameType.exec, COMMAND_STREAM, payload));
    this.#port.send(encodeFrame(FrameType.stdin, COMMAND_STREAM, Buffer.from(stdin)));
    const isOutput = ({ type }: Frame) => type === FrameType.stdout || type === FrameType.exit;
    const { type, payload: output } = await this.#port.next(isOutput, ANSWER_TIMEOUT_MS);
    if (type === FrameType.exit) throw new Error(`the guest's command ended: ${output}`);
    return output.toString('utf8');
  }

  /** Runs a line of shell to its end and gives what it wrote; throws when it fails. */
  async shell(line: string, stdin: Buffer = Buffer.alloc(0)): Promise<string> {
    const stream = ++this.#lastStream;
    const command = ['/bin/sh', '-c', line];
    const strings = ['', String(command.length), ...command, 'LC_ALL=C'];
    const payload = Buffer.from(strings.map((text) => `${text}\0`).join(''));
    this.#port.send(encodeFrame(FrameType.exec, stream, payload));
    this.#port.send(encodeFrame(FrameType.stdin, stream, stdin, FLAG_END));
    let output = '';
    for (;;) {
      const frame = await this.#port.next((each) => each.stream === stream, ANSWER_TIMEOUT_MS);
      if (frame.type === FrameType.stdout) output += frame.payload.toString('utf8');
      if (frame.type !== FrameType.exit) continue;
      const how = frame.payload.toString('utf8').trim();
      if (how === 'code=0') return output;
      throw new Error(`in the plain guest: ${line}: ${how}`);
    }
  }

  /** `stop` and `migrate` into a file; resolves when all of it is written. */
  async save(file: string, bytesPerS: number | undefined): Promise<void> {
    await this.#qmp.execute('stop');
    if (bytesPerS !== undefined) {
      await this.#qmp.execute('migrate-set-parameters', { 'max-bandwidth': bytesPerS });
    }
    await this.#qmp.execute('migrate', { uri: `exec:cat > ${file}` });
    await this.#migrated();
  }

  /** Loads the file and runs on. */
  async restore(file: string): Promise<void> {
    await this.#qmp.execute('migrate-incoming', { uri: `exec:cat ${file}` });
    await this.#migrated();
    await this.#qmp.execute('cont');
  }

  async resume(): Promise<void> {
    await this.#qmp.execute('cont');
  }

  /** @returns why it can't take part in post-copy, or undefined when it will. */
  async usePostCopy(): Promise<string | undefined> {
    const capabilities = [{ capability: 'postcopy-ram', state: true }];
    try {
      await this.#qmp.execute('migrate-set-capabilities', { capabilities });
      return undefined;
    } catch (error) {
      return (error as Error).message;
    }
  }

  /** Takes a VM from the network: `tcp:ADDRESS:PORT`. */
  async listen(uri: string): Promise<void> {
    await this.#qmp.execute('migrate-incoming', { uri });
  }

  /**
   * Sends the VM to one that listens, as fast as the network goes: stopped, or by post-copy, in
   * which it is stopped at once and its memory follows. Resolves when all of it is there.
   */
  async sendTo(uri: string, how: 'stopped' | 'post-copy'): Promise<void> {
    await this.#qmp.execute('migrate-set-parameters', { 'max-bandwidth': UNLIMITED_BYTES_PER_S });
    if (how === 'stopped') await this.#qmp.execute('stop');
    await this.#qmp.execute('migrate', { uri });
    if (how === 'post-copy') {
      await this.#migrationIs('active');
      await this.#qmp.execute('migrate-start-postcopy');
    }
    await this.#migrated();
  }

  /** Until the processor's state is here: it runs on, or `resume` lets it. */
  async arrived(): Promise<void> {
    const deadline = performance.now() + MIGRATION_TIMEOUT_MS;
    for (;;) {
      const { status } = (await this.#qmp.execute('query-status')) as { status: string };
      if (status !== 'inmigrate') return;
      if (performance.now() > deadline) throw new Error('nothing came to the plain QEMU');
      await delay(MIGRATION_POLL_MS);
    }
  }

  /** Until the guest side answers. */
  async answered(): Promise<void> {
    this.#port.send(encodeFrame(FrameType.ping, 0));
    await this.#port.next((frame) => frame.type === FrameType.pong, ANSWER_TIMEOUT_MS);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const exited = once(this.#process, 'exit');
    const isOver = this.#process.exitCode !== null || this.#process.signalCode !== null;
    this.#process.kill('SIGKILL');
    if (!isOver) await exited;
    this.#qmp.close();
    this.#port.close();
  }

  async #migrated(): Promise<void> {
    await this.#migrationIs('completed');
  }

  /** `query-migrate` as a script would. */
  async #migrationIs(wanted: 'active' | 'completed'): Promise<void> {
    const deadline = performance.now() + MIGRATION_TIMEOUT_MS;
    for (;;) {
      const { status } = (await this.#qmp.execute('query-migrate')) as { status?: string };
      if (status === wanted) return;
      if (status === 'failed' || performance.now() > deadline) {
        throw new Error(`the migration of the plain QEMU is ${status}`);
      }
      await delay(MIGRATION_POLL_MS);
    }
  }
}

const COMMAND_STREAM = 1;

function plainArguments(
  { prepared, machineType, accelerator, cpuModel, incoming }: PlainQemuOptions,
  socket: (name: string) => string,
): string[] {
  const server = (name: string) => `socket,id=${name},path=${socket(name)},server=on,wait=off`;
  return [
    ...['-machine', `${machineType},accel=${accelerator}`, '-cpu', cpuModel, '-smp', '1'],
    ...['-m', `${prepared.memoryBytes >> 20}M`, '-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-chardev', server('qmp'), '-mon', 'chardev=qmp,mode=control'],
    ...['-device', 'virtio-serial-pci', '-chardev', server('port')],
    ...['-device', 'virtserialport,chardev=port,name=org.snowfork.0'],
    ...['-drive', `file=${prepared.diskPath},format=raw,if=virtio,readonly=on`],
    ...['-kernel', prepared.kernelPath, '-initrd', prepared.initrdPath],
    ...['-append', prepared.commandLine],
    ...(incoming ? ['-incoming', 'defer'] : []),
  ];
}

/** The agent's end of a guest's port, as far as a bench needs it. */
class GuestPort {
  readonly #socket: net.Socket;
  readonly #reader = new FrameReader();
  readonly #frames: Frame[] = [];
  #wake: (() => void) | undefined;

  private constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      this.#frames.push(...this.#reader.push(chunk));
      this.#wake?.();
    });
  }

  static async connect(file: string): Promise<GuestPort> {
    const socket = net.connect(file);
    await once(socket, 'connect');
    return new GuestPort(socket);
  }

  send(frame: Buffer): void {
    this.#socket.write(frame);
  }

  close(): void {
    this.#socket.destroy();
  }

  /** The next frame that fits; those before it are dropped. */
  async next(fits: (frame: Frame) => boolean, timeoutMs: number): Promise<Frame> {
    const timedOut = delay(timeoutMs, true, { ref: false });
    for (;;) {
      for (let frame = this.#frames.shift(); frame !== undefined; frame = this.#frames.shift()) {
        if (fits(frame)) return frame;
      }
      const woken = new Promise<false>((resolve) => {
        this.#wake = () => resolve(false);
      });
      if (await Promise.race([woken, timedOut])) throw new Error('the plain guest does not answer');
    }
  }
}

/** A Perl program that takes so much memory, all of it filled, says `held` and sleeps. */
export function holdProgram(mib: number): string {
  return `
  $| = 1;
  my $held = '';
  $held .= "\\1" x (1 << 20) for 1 .. ${mib};
  substr $held, $_ * 4096, 4096, pack('V2', 1, $_) x 512 for 0 .. ${mib} * 256 - 1;
  print "held\\n";
  sleep;
`;
}
