// What stands between a QEMU that a guest has taken over and the rest of the host: a user and a network
// namespace of its own, no capabilities, limits. Says how QEMU is to be started, what of the mount it
// may open, and gives all back when it has ended. Whether and when one starts is not its affair. Owned by
// `hypervisor.ts`, which hands each QEMU its `Jail`. The threats: `docs/sandbox.md`.

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import type { Logger } from 'pino';
import type { Settings } from '../settings.js';
import type { StateFolder } from '../store/state-folder.js';
import type { MachineShape } from './arguments.js';
import { type CgroupFacts, Cgroups } from './cgroups.js';
import { VmUsers } from './vm-users.js';

const MiB = 1024 * 1024;
const KVM_DEVICE = '/dev/kvm';
/** QEMU's descriptor of the mount, through which it reaches the objects that it may open. */
export const MOUNT_DESCRIPTOR = 4;
/** The file in a QEMU's folder that it writes its device state to: the only one that it can write. */
export const DEVICE_STATE_FILE = 'device';

/** A device state is smaller by far, and QEMU writes nothing else. */
const FILE_BYTES_MAX = 64 * MiB;
const OPEN_FILES_MAX = 1024;
/** Beside one for each processor: QEMU's main loop, RCU, console, and at most 64 for its disk. */
const THREADS_EXTRA = 128;
/** When memory runs out VMs go before whatever else runs on the host. */
const OOM_SCORE = 500;
/** Not in Node's constants. */
const O_PATH = 0o10000000;
const PROBE_TIMEOUT_MS = 5_000;
const WITHOUT_NETWORK = ['unshare', '--net', '--ipc', '--'];
const WITHOUT_CAPABILITIES = ['--no-new-privs', '--bounding-set=-all', '--inh-caps=-all'];
/** Before its user is changed: from outside it would take a right that containers lack. */
const LIMITED = [
  ...['prlimit', '--core=0:0', `--nofile=${OPEN_FILES_MAX}:${OPEN_FILES_MAX}`],
  ...[`--fsize=${FILE_BYTES_MAX}:${FILE_BYTES_MAX}`, '--'],
];

/** For `sf doctor`. */
export interface ConfinementFacts {
  /** The first of this agent's users and how many; or why VMs run as the agent's user. */
  readonly users: { readonly first: number; readonly count: number } | string;
  /** Why QEMUs share the host's network; undefined when each has one of its own, with nothing in it. */
  readonly sharesNetwork: string | undefined;
  /** Why they keep the agent's capabilities; undefined when they have none. */
  readonly keepsCapabilities: string | undefined;
  readonly cgroups: CgroupFacts;
}

/** One QEMU's. What it needs after an agent's death is in its folder: the folder's group is its user. */
export interface Jail {
  /** Undefined: the agent's. */
  readonly user: number | undefined;
  /** Of the mount, for `MOUNT_DESCRIPTOR`. */
  readonly mountDescriptor: number;
  /** What to start so that QEMU starts confined, as the same process. */
  command(program: string, parameters: readonly string[]): string[];
  /** Allows an object of the mount; returns the path by which QEMU opens it. Other paths stay. */
  admit(objectPath: string): string;
  /** Makes a file readable for it; returns the path. */
  bring(file: string): string;
  /** Right after its start: limits. Resolves when they hold. */
  enter(pid: number, background: boolean): Promise<void>;
  /** Of one that was started in the background. */
  foreground(): void;
  /** QEMU has made its sockets: from now on it can make no files. */
  close(): void;
}

export interface ConfinementOptions {
  readonly state: StateFolder;
  readonly settings: Settings;
  readonly log: Logger;
}

export class Confinement {
  readonly facts: ConfinementFacts;
  readonly #options: ConfinementOptions;
  readonly #users: VmUsers | undefined;
  readonly #cgroups: Cgroups;
  #mountDescriptor: number | undefined;
  #warned = false;

  static async start(options: ConfinementOptions): Promise<Confinement> {
    const { state, settings } = options;
    const { dev, ino } = fs.statSync(state.root);
    const [sharesNetwork, keepsCapabilities, cgroups] = await Promise.all([
      whyNot([...WITHOUT_NETWORK, 'true']),
      whyNot([...LIMITED, 'setpriv', ...WITHOUT_CAPABILITIES, '--', 'true']),
      Cgroups.open({ agent: `${dev}-${ino}`, record: path.join(state.root, 'cgroups') }),
    ]);
    const users = keepsCapabilities ?? (await VmUsers.claim(settings.vmUserFirst));
    return new Confinement(options, { users, sharesNetwork, keepsCapabilities, cgroups });
  }

  private constructor(
    options: ConfinementOptions,
    found: Omit<ConfinementFacts, 'users' | 'cgroups'> & {
      users: VmUsers | string;
      cgroups: Cgroups;
    },
  ) {
    const { users, cgroups } = found;
    this.#options = options;
    this.#cgroups = cgroups;
    this.#users = typeof users === 'string' ? undefined : users;
    this.facts = {
      ...found,
      users: typeof users === 'string' ? users : users.range,
      cgroups: cgroups.facts,
    };
  }

  /** For a QEMU that will be started in `folder`, which is there and empty. */
  prepare(folder: string, shape: MachineShape): Jail {
    const kvm = shape.accelerator === 'kvm' ? kvmAccess() : 'all';
    // Without its accelerator it would not start: better as the agent's user.
    const user = kvm === 'owner' ? undefined : this.#users?.take();
    if (user !== undefined) fs.chownSync(folder, user, user);
    fs.writeFileSync(path.join(folder, DEVICE_STATE_FILE), '', { mode: 0o600 });
    if (user !== undefined) fs.chownSync(path.join(folder, DEVICE_STATE_FILE), user, user);
    const groups = typeof kvm === 'number' ? `--groups=${kvm}` : '--clear-groups';
    return {
      user,
      mountDescriptor: this.#openMount(),
      command: (program, parameters) => [...this.#prefix(user, groups), program, ...parameters],
      admit: (objectPath) => this.#admit(user, objectPath),
      bring: (file) => bring(folder, user, file),
      enter: (pid, background) => this.#enter(folder, pid, { shape, background }),
      foreground: () => this.#cgroups.foreground(path.basename(folder)),
      close: () => closeFolder(folder, user),
    };
  }

  /** The last process of this folder's QEMU has gone. Removes the folder, whoever made it. */
  async release(folder: string): Promise<void> {
    const user = ownUser(folder);
    fs.rmSync(folder, { recursive: true, force: true });
    if (user !== undefined) {
      fs.rmSync(this.#openers(user), { force: true });
      this.#users?.giveBack(user);
    }
    await this.#cgroups.remove(path.basename(folder));
  }

  /** All QEMUs have gone. */
  async stop(): Promise<void> {
    if (this.#mountDescriptor !== undefined) fs.closeSync(this.#mountDescriptor);
    this.#mountDescriptor = undefined;
    this.#users?.[Symbol.dispose]();
    await this.#cgroups.close();
  }

  #prefix(user: number | undefined, groups: string): string[] {
    const { sharesNetwork, keepsCapabilities } = this.facts;
    const ids = user === undefined ? [] : [`--reuid=${user}`, `--regid=${user}`, groups];
    return [
      ...(sharesNetwork === undefined ? WITHOUT_NETWORK : []),
      ...(keepsCapabilities === undefined
        ? [...LIMITED, 'setpriv', ...ids, ...WITHOUT_CAPABILITIES, '--']
        : []),
    ];
  }

  /** The folders above the mount are root's own: QEMU starts its way at a descriptor of the mount. */
  #openMount(): number {
    const flags = O_PATH | fs.constants.O_DIRECTORY;
    this.#mountDescriptor ??= fs.openSync(this.#options.state.mount, flags);
    return this.#mountDescriptor;
  }

  #admit(user: number | undefined, objectPath: string): string {
    const name = path.relative(this.#options.state.mount, objectPath);
    if (name.startsWith('..')) return objectPath;
    if (user !== undefined) fs.appendFileSync(this.#openers(user), `${name}\n`, { mode: 0o600 });
    return `/proc/self/fd/${MOUNT_DESCRIPTOR}/${name}`;
  }

  /** Read by the pager (`pager/openers.ts`). */
  #openers(user: number): string {
    return path.join(this.#options.state.runOpeners, String(user));
  }

  async #enter(
    folder: string,
    pid: number,
    { shape, background }: { shape: MachineShape; background: boolean },
  ): Promise<void> {
    try {
      fs.writeFileSync(`/proc/${pid}/oom_score_adj`, String(OOM_SCORE));
    } catch {
      // It has gone; whoever started it hears of that.
    }
    const { vmMemoryExtraBytes, vmCpusExtra } = this.#options.settings;
    const problems = await this.#cgroups.add(path.basename(folder), pid, {
      memoryBytes: shape.memoryBytes + vmMemoryExtraBytes,
      cpus: shape.vcpus + vmCpusExtra,
      threads: shape.vcpus + THREADS_EXTRA,
      background,
    });
    if (problems.length === 0 || this.#warned) return;
    this.#warned = true;
    this.#options.log.warn({ pid, problems }, 'a QEMU runs without some of its limits');
  }
}

/** The user of the QEMU whose folder this is; undefined when it is the agent's, or has no folder. */
export function ownUser(folder: string): number | undefined {
  const gid = fs.statSync(folder, { throwIfNoEntry: false })?.gid;
  return gid === undefined || gid === process.getgid?.() ? undefined : gid;
}

function bring(folder: string, user: number | undefined, file: string): string {
  if (user === undefined) return file;
  const name = path.basename(file);
  fs.copyFileSync(file, path.join(folder, name));
  fs.chownSync(path.join(folder, name), process.getuid!(), user);
  fs.chmodSync(path.join(folder, name), 0o640);
  return name;
}

/** Its group may pass, to the file of the device state, and nothing more. */
function closeFolder(folder: string, user: number | undefined): void {
  if (user === undefined) return;
  fs.chownSync(folder, process.getuid!(), user);
  fs.chmodSync(folder, 0o710);
}

/** Who may use KVM: all, a group, or only the device's owner. */
export function kvmAccess(device = KVM_DEVICE): 'all' | 'owner' | number {
  const { mode, gid } = fs.statSync(device);
  if ((mode & 0o006) === 0o006) return 'all';
  return (mode & 0o060) === 0o060 && gid !== 0 ? gid : 'owner';
}

async function whyNot([program, ...parameters]: string[]): Promise<string | undefined> {
  try {
    await promisify(execFile)(program!, parameters, { timeout: PROBE_TIMEOUT_MS });
    return undefined;
  } catch (error) {
    const { stderr, message } = error as { stderr?: string; message: string };
    return `${program} does not work: ${stderr?.trim() || message}`;
  }
}
