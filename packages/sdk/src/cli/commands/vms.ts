// `sf launch`, `ps`, `tree`, `wait`, `kill`. Called by `program.ts`.

import type { VmInfo } from '../../api/schemas.js';
import { valueToJson } from '../../api/value.js';
import type { Host } from '../../host/host.js';
import { pause } from '../../host/waits.js';
import { Changes } from '../changes.js';
import { type CommandSpec, EXIT_FAILED, EXIT_OK, parseSeconds } from '../command.js';
import { formatDuration, formatEnd, PAGE_BYTES } from '../format.js';
import type { Output } from '../output.js';
import { type LiveScreen, withScreen } from '../screen.js';
import { familyTree, type FamilyNode as Node, renderTree } from '../tree.js';
import { placingOf, placingOptions } from './forks.js';

const launch: CommandSpec = {
  syntax: 'launch <image>',
  summary: 'start a VM of an image and print its id',
  options: placingOptions,
  examples: [
    { line: 'sf launch minimal', says: 'ready in a fraction of a second: nothing boots' },
    { line: 'vm=$(sf launch minimal)', says: 'keep the id' },
  ],
  exits: [{ code: '6', when: 'the host has no room for one more VM' }],
  async run({ output, interrupts, connect }, [image = ''], placing) {
    const options = { signal: interrupts.signal, ...placingOf(placing) };
    const vm = await (await connect()).launch(image, options);
    if (output.json) output.document(vm.initialInfo);
    else output.line(vm.id);
  },
};

const list: CommandSpec = {
  syntax: 'ps',
  summary: 'list VMs',
  options: [{ flags: '-a, --all', summary: 'those too that ended lately' }],
  examples: [
    { line: 'sf ps', says: 'running VMs' },
    { line: 'sf ps --all --json', says: 'also the ended ones, with how they ended' },
  ],
  async run({ output, interrupts, connect }, _args, { all = false }) {
    const host = await connect();
    const vms = await host.vms({ all: all === true, signal: interrupts.signal });
    if (output.json) return output.document({ vms: vms.map(jsonVm) });
    const now = Date.now();
    const inCluster = vms.some(({ host }) => host !== undefined);
    output.table(
      ['ID', ...(inCluster ? ['HOST'] : []), 'IMAGE', 'STATE', 'PARENT', 'CLONE', 'AGE', 'END'],
      vms.map((vm) => [
        vm.id,
        ...(inCluster ? [vm.host ?? '-'] : []),
        vm.image,
        vm.state,
        vm.parent ?? '-',
        vm.cloneId === undefined ? '-' : String(vm.cloneId),
        formatDuration((vm.endedAt ?? now) - vm.startedAt),
        vm.end === undefined ? '' : formatEnd(vm.end),
      ]),
    );
  },
};

const tree: CommandSpec = {
  syntax: 'tree',
  summary: 'draw the families: who forked whom, and what each holds of its own',
  options: [
    { flags: '-a, --all', summary: 'also families of which nobody runs' },
    { flags: '-w, --watch', summary: 'draw anew whenever something changes; q or Ctrl-C leaves' },
  ],
  examples: [
    { line: 'sf tree', says: 'id, image, state, private memory, age, how ended' },
    { line: 'sf tree --all --json', says: 'the same, nested, as JSON' },
    { line: 'sf tree --watch', says: 'look on while VMs fork' },
  ],
  async run(session, _args, { all = false, watch = false }) {
    const { output, interrupts } = session;
    const host = await session.connect();
    if (watch === true) {
      return await withScreen(session, (screen) => watchTree(host, output, all === true, screen));
    }
    const families = await readFamilies(host, all === true, interrupts.signal);
    if (output.json) output.document({ families: families.map(jsonNode) });
    else for (const line of renderTree(families, Date.now())) output.line(line);
    if (families.length === 0) output.note(NO_VM);
  },
};

const wait: CommandSpec = {
  syntax: 'wait <vm>',
  summary: 'wait until a VM has ended and print how',
  options: [{ flags: '--timeout <seconds>', summary: 'give up after this', parse: parseSeconds }],
  examples: [{ line: 'sf wait 7f3a --timeout 60', says: 'wait at most a minute' }],
  exits: [
    { code: '1', when: 'it was killed or lost, it did not exit by itself' },
    { code: '7', when: 'it still runs' },
  ],
  async run({ output, interrupts, connect }, [id = ''], { timeout }) {
    const { signal } = interrupts;
    const vm = await (await connect()).vm(id, { signal });
    const end = await vm.wait({ signal, timeoutMs: timeout as number | undefined });
    if (output.json) output.document(jsonEnd(end));
    else output.line(formatEnd(end));
    return end.how === 'exited' ? EXIT_OK : EXIT_FAILED;
  },
};

const detach: CommandSpec = {
  syntax: 'detach <vm>',
  summary: 'bring all pages that a VM may want of other hosts to its own, so that those may go',
  examples: [
    { line: 'sf detach vm5-beta', says: 'what it was cloned from may be lost after that' },
  ],
  exits: [{ code: '3', when: 'a host that has pages of it does not answer' }],
  async run({ output, interrupts, connect }, [id = '']) {
    const { signal } = interrupts;
    const vm = await (await connect()).vm(id, { signal });
    const { pages } = await vm.detach({ signal });
    if (output.json) output.document({ vm: id, pages });
    else output.line(`${pages} pages came from other hosts: ${id} needs nobody now`);
  },
};

const kill: CommandSpec = {
  syntax: 'kill <vm...>',
  summary: 'end VMs at once',
  examples: [{ line: 'sf kill 7f3a 81c0', says: 'their clones go on' }],
  exits: [{ code: '4', when: 'one of them is not known; those named before it are killed' }],
  async run({ output, interrupts, connect }, ids) {
    const host = await connect();
    for (const id of ids) {
      const vm = await host.vm(id, { signal: interrupts.signal });
      await vm.kill();
      output.line(id);
    }
    if (output.json) output.document({ killed: ids });
  },
};

export const vmCommands = [launch, list, tree, wait, detach, kill] as const;

const NO_VM = 'no VM runs: `sf launch <image>` starts one';
/** Many changes at once are drawn once. */
const REDRAW_INTERVAL_MS = 100;
/** Ages and memory change without a word; for JSON only what changes counts. */
const REDRAW_ANYWAY_MS = 2000;

/** Draws at first, and after each change; returns when the signal aborts or the agent ends. */
async function watchTree(
  host: Host,
  output: Output,
  all: boolean,
  screen: LiveScreen,
): Promise<void> {
  const { signal } = screen;
  const changes = new Changes(host, signal);
  for (;;) {
    const families = await readFamilies(host, all, signal);
    if (output.json) output.document({ families: families.map(jsonNode) });
    else screen.draw(families.length === 0 ? [NO_VM] : renderTree(families, Date.now()));
    await pause(REDRAW_INTERVAL_MS, signal);
    if (!(await changes.next(output.hasScreen ? REDRAW_ANYWAY_MS : undefined))) return;
  }
}

async function readFamilies(host: Host, all: boolean, signal: AbortSignal): Promise<Node[]> {
  const vms = await host.vms({ all: true, signal });
  const running = new Set(vms.filter((vm) => vm.state !== 'ended').map((vm) => vm.family));
  const shown = all ? vms : vms.filter((vm) => running.has(vm.family));
  return familyTree(shown, await privateBytesOf(host, shown, signal));
}

/** Private memory of those that run; one that ends meanwhile has none. */
async function privateBytesOf(
  host: Host,
  vms: readonly VmInfo[],
  signal: AbortSignal,
): Promise<Map<string, number>> {
  const sizes = new Map<string, number>();
  const running = vms.filter((vm) => vm.state !== 'ended');
  const measure = async ({ id }: VmInfo) => {
    const vm = await host.vm(id, { signal });
    sizes.set(id, (await vm.stats({ signal })).privatePages * PAGE_BYTES);
  };
  await Promise.allSettled(running.map(measure));
  if (signal.aborted) throw signal.reason;
  return sizes;
}

function jsonVm(vm: VmInfo): VmInfo {
  return vm.end === undefined ? vm : { ...vm, end: jsonEnd(vm.end) };
}

function jsonEnd(end: NonNullable<VmInfo['end']>): NonNullable<VmInfo['end']> {
  return end.how === 'exited' ? { ...end, value: valueToJson(end.value) } : end;
}

function jsonNode({ vm, privateBytes, children }: Node): unknown {
  return { ...jsonVm(vm), privateBytes, children: children.map(jsonNode) };
}
