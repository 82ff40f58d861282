// How fast a host's own link is, where the machine shows other links by the same names.

import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import {
  type NetHost,
  NetHosts,
  whyNoNetHosts,
} from '../../packages/clone-agent/src/system/net-hosts.js';

const BUILT = fileURLToPath(
  new URL('../../packages/clone-agent/dist/system/link-speed.js', import.meta.url),
);
const VETH_BITS_PER_SECOND = 10e9;

test.skipIf(whyNoNetHosts())('is what the host’s own interface says, or not known', async () => {
  await using net = await NetHosts.create({ hosts: 2 });
  const [alpha, beta] = net.hosts as [NetHost, NetHost];
  const mountsOfSys = () => {
    const mounts = fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
    return mounts.filter((line) => line.includes(' /sys'));
  };
  const before = mountsOfSys();
  const speedAt = ({ address }: NetHost) => {
    const asked = `linkSpeed(${JSON.stringify(address)})`;
    const script = `import(${JSON.stringify(BUILT)})
      .then(({ linkSpeed }) => console.log(String(${asked})))`;
    return [process.execPath, '-e', script];
  };
  // With alpha's `/sys`, where nobody else sees it: `run` enters its network, and not its mounts.
  const withItsSys = async (...program: string[]) => {
    const mountFirst = 'mount -t sysfs none /sys && exec "$@"';
    const apart = ['--mount', '--propagation', 'private', 'sh', '-c', mountFirst, 'sh'];
    return (await alpha.run('unshare', ...apart, ...program)).trim();
  };
  expect(await withItsSys(...speedAt(alpha))).toBe(String(VETH_BITS_PER_SECOND));
  // Another host's, which has an `eth0` too.
  const elsewhere = ['nsenter', `--net=${beta.namespace}`, ...speedAt(beta)];
  expect(await withItsSys(...elsewhere)).toBe('undefined');
  expect(mountsOfSys()).toEqual(before);
});
