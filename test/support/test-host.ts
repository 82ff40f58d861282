// Hosts for tests with real VMs: an agent of the tests' own, in a state folder of their own, so that
// an agent that somebody uses on this machine is not touched. The agent ends when this process does,
// however it does. Images stay from one run to the next.

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { connect, type Host } from '@snowfork/sdk';

const root = path.resolve(fileURLToPath(import.meta.url), '../../..');

/** Where the tests' images are kept; the path must be short, for the sockets below it. */
export const testState = process.env.SNOWFORK_TEST_STATE ?? '/var/tmp/snowfork-test';

/** Folders of agents apart; the id of the process that they belong to follows. */
const APART_PREFIX = 'sfa-';

/** Why VMs cannot run here; undefined when they can. */
export function whyNoVms(): string | undefined {
  if (process.getuid?.() !== 0) return 'VM tests need root: mounts and /dev/fuse';
  if (!fs.existsSync('/dev/fuse')) return 'there is no /dev/fuse';
  return undefined;
}

/** The process that the shared agent ends with: that of `npm test`, or the first that asks for it. */
const sharedOwner = process.env.SNOWFORK_TEST_OWNER;

/** Whether the shared agent is to be ended by this process. */
export function isSharedOwn(): boolean {
  return sharedOwner === undefined;
}

/** The agent that all VM tests share, with the image `name` built. */
export async function testHost(...images: string[]): Promise<Host> {
  const host = await connectOwned(testState, sharedOwner);
  for (const name of images) {
    await host.buildImage({ name, file: path.join(root, 'images', `${name}.yaml`) });
  }
  return host;
}

/**
 * An agent apart, with settings of its own and the shared images; for tests that break their agent.
 * Its folder goes with `dispose`.
 */
export async function hostApart(
  settings: Record<string, unknown>,
  ...images: string[]
): Promise<{ host: Host; state: string; dispose: () => Promise<void> }> {
  const shared = await testHost(...images);
  await shared.close();
  const state = fs.mkdtempSync(
    path.join(path.dirname(testState), `${APART_PREFIX}${process.pid}-`),
  );
  // Hard links: layers are never written again, and they are large and sparse. The cache saves builds
  // their downloads, and every agent the seconds of probing its accelerator.
  const shares = ['images', 'snapshots', 'layers', 'cache'].map((folder) =>
    path.join(testState, folder),
  );
  execFileSync('cp', ['-al', ...shares, state]);
  fs.writeFileSync(path.join(state, 'settings.json'), JSON.stringify(settings));
  const host = await connectOwned(state);
  const dispose = async () => {
    await host.shutDown().catch(() => {});
    await host.close();
    fs.rmSync(state, { recursive: true, force: true });
  };
  return { host, state, dispose };
}

/** What tests have left that were killed together with their agents. */
export async function removeLeftApart(): Promise<void> {
  const parent = path.dirname(testState);
  for (const name of fs.readdirSync(parent)) {
    const owner = /^(\d+)-/.exec(name.slice(APART_PREFIX.length))?.[1];
    if (!name.startsWith(APART_PREFIX) || owner === undefined) continue;
    if (fs.existsSync(`/proc/${owner}`)) continue;
    const state = path.join(parent, name);
    // An agent knows best what there is to end.
    const host = await connectOwned(state);
    await host.shutDown();
    await host.close();
    fs.rmSync(state, { recursive: true, force: true });
  }
}

function connectOwned(stateFolder: string, owner = String(process.pid)): Promise<Host> {
  // Vitest has no import.meta.resolve, by which the SDK finds the agent's program.
  process.env.SNOWFORK_AGENT ??= path.join(root, 'packages/clone-agent/dist/main.js');
  process.env.SNOWFORK_OWNER = owner;
  return connect({ stateFolder });
}
