// A throw-away user of this host, who owns nothing but a home: commands run as that user, in a mount
// namespace of the test's own, where /dev/fuse and /dev/kvm are as they usually are and the project
// and Node can be read. Nothing of the host is changed. Needs root.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { NetHost } from '../../packages/clone-agent/src/system/net-hosts.js';

const root = path.resolve(fileURLToPath(import.meta.url), '../../..');
const PARENT = '/var/tmp';
const PREFIX = 'sfu-';
/** Above the ids that systems give, and each test process has its own. */
const FIRST_USER_ID = 1_000_000;
const PROCESS_IDS_MAX = 2 ** 22;
const MODES = { usual: '0666', closed: '0600' } as const;

/** Run by root in a mount namespace of its own: $1 folder, $2 user, $3 mode of /dev/fuse. */
const ENTER = `set -e
mount -t tmpfs -o mode=0755 devices "$1/dev"
mknod -m "$3" "$1/dev/fuse" c 10 229
mount --bind "$1/dev/fuse" /dev/fuse
if [ -e /dev/kvm ]; then
  mknod -m 0666 "$1/dev/kvm" c 10 232
  mount --bind "$1/dev/kvm" /dev/kvm
fi
mount --bind "$4" "$1/project"
mount --bind "$5" "$1/node"
cd "$1/home"
user=$2
shift 5
exec setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@"`;

/** No namespace can be made below this one, as where the system forbids it. */
const FORBID = [
  ...['unshare', '--user', '--map-current-user', '--keep-caps', '--', 'sh', '-ec'],
  'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --inh-caps=-all --ambient-caps=-all "$@"',
  'sh',
];

export interface Ran {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** Of /dev/fuse. */
  readonly fuse?: keyof typeof MODES;
  readonly namespaces?: 'forbidden';
  /** Of which network the user is; of the test's own without it. */
  readonly net?: NetHost;
}

export class OrdinaryUser implements AsyncDisposable {
  readonly id: number;
  readonly #folder: string;

  /** `number`: of several at a time. */
  constructor(number = 0) {
    this.id = FIRST_USER_ID + number * PROCESS_IDS_MAX + process.pid;
    this.#folder = fs.mkdtempSync(path.join(PARENT, PREFIX));
    fs.chmodSync(this.#folder, 0o755);
    for (const name of ['dev', 'project', 'disk']) fs.mkdirSync(path.join(this.#folder, name));
    fs.writeFileSync(path.join(this.#folder, 'node'), '');
    // As where homes are on another disk: the kernel's names of files are not the user's.
    fs.symlinkSync('disk', this.home);
    fs.chownSync(this.home, this.id, this.id);
  }

  get home(): string {
    return path.join(this.#folder, 'home');
  }

  /** Where the agent of such a user keeps everything. */
  get state(): string {
    return path.join(this.home, '.local/state/snowfork');
  }

  /** Folders of another agent's state, as the user's own. */
  async giveState(from: string, folders: readonly string[]): Promise<void> {
    fs.mkdirSync(this.state, { recursive: true });
    const sources = folders.map((folder) => path.join(from, folder));
    await succeed('cp', ['-r', '--sparse=always', ...sources, this.state]);
    await succeed('chown', ['-R', `${this.id}:${this.id}`, path.join(this.home, '.local')]);
  }

  /** The `sf` command. */
  sf(parameters: readonly string[], options?: RunOptions): Promise<Ran> {
    const command = path.join(this.#folder, 'project/packages/sdk/dist/cli/main.js');
    return this.run([path.join(this.#folder, 'node'), command, ...parameters], options);
  }

  /** A program for Node which may import the SDK. */
  program(source: string): Promise<Ran> {
    const place = path.join(this.#folder, 'project/test');
    const node = path.join(this.#folder, 'node');
    const script = 'cd "$1"; exec "$2" --input-type=module --eval "$3"';
    return this.run(['sh', '-c', script, 'sh', place, node, source]);
  }

  run(command: readonly string[], options: RunOptions = {}): Promise<Ran> {
    const mode = MODES[options.fuse ?? 'usual'];
    const enter = [ENTER, 'sh', this.#folder, String(this.id), mode, root, process.execPath];
    const forbid = options.namespaces === 'forbidden' ? FORBID : [];
    const all = ['unshare', '--mount', '--', 'sh', '-c', ...enter, ...forbid, ...command];
    const network = options.net === undefined ? [] : [`--net=${options.net.namespace}`];
    const { PATH } = process.env;
    const environment = { PATH, HOME: this.home, SNOWFORK_OWNER: String(process.pid) };
    return untilEnded(
      spawn('nsenter', [...network, ...all], {
        env: environment,
        stdio: ['ignore', 'pipe', 'pipe'],
      }),
    );
  }

  /** What runs as this user. */
  processes(): number[] {
    const ids = fs.readdirSync('/proc').map(Number).filter(Boolean);
    return ids.filter((pid) => ownerOf(pid) === this.id);
  }

  /** Ends what a test that failed has left, and removes the home. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const pid of this.processes()) process.kill(pid, 'SIGKILL');
    fs.rmSync(this.#folder, { recursive: true, force: true });
  }
}

function ownerOf(pid: number): number | undefined {
  try {
    return fs.statSync(`/proc/${pid}`).uid;
  } catch {
    return undefined;
  }
}

async function untilEnded(child: ChildProcess): Promise<Ran> {
  let stdout = '';
  let stderr = '';
  child.stdout!.on('data', (chunk) => {
    stdout += chunk;
  });
  child.stderr!.on('data', (chunk) => {
    stderr += chunk;
  });
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, stdout, stderr };
}

async function succeed(command: string, parameters: readonly string[]): Promise<void> {
  const { code, stderr } = await untilEnded(
    spawn(command, parameters, { stdio: ['ignore', 'pipe', 'pipe'] }),
  );
  if (code !== 0) throw new Error(`${command} ended with ${code}: ${stderr}`);
}
