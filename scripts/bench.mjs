// `npm run bench -- NAME [--json] [--quick]`: sets up what is missing and runs `bench/NAME.ts`.

import fs from 'node:fs';
import path from 'node:path';
import { root, run, setUp } from './setup.mjs';

/** Debian packages of a bench's own, as in `setup.mjs`: its peers, and what makes its network. */
const morePackages = {
  remote: { iproute2: 'ip', nftables: 'nft', udpcast: 'udp-sender', uftp: 'uftp' },
};

const [name, ...rest] = process.argv.slice(2);
const names = fs
  .readdirSync(path.join(root, 'bench'))
  .filter((file) => file.endsWith('.ts'))
  .map((file) => path.basename(file, '.ts'));
if (name === undefined || !names.includes(name)) {
  process.stderr.write(
    `usage: npm run bench -- NAME [--json] [--quick]\nNAME is one of: ${names.join(', ')}\n`,
  );
  process.exit(2);
}
setUp(morePackages[name]);
run(process.execPath, [path.join(root, 'bench/dist', `${name}.js`), ...rest], { stdio: 'inherit' });
