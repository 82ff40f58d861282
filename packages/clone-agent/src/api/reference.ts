// Writes `docs/reference/openapi.json`: `npx tsx packages/clone-agent/src/api/reference.ts`. A test
// checks that the file is current.

import fs from 'node:fs';
import { openApi } from './openapi.js';

const FILE = new URL('../../../../docs/reference/openapi.json', import.meta.url);
const PACKAGE = new URL('../../package.json', import.meta.url);

const { version } = JSON.parse(fs.readFileSync(PACKAGE, 'utf8')) as { version: string };
fs.writeFileSync(FILE, `${JSON.stringify(openApi(version), undefined, 2)}\n`);
