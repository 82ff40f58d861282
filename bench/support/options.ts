// What a bench is asked on its command line. Every bench takes the same words.

import { parseArgs } from 'node:util';

export interface BenchOptions {
  /** One JSON object on standard output instead of tables. */
  readonly json: boolean;
  /** A rough answer in about a minute. */
  readonly quick: boolean;
  /** Only these parts of the bench; all when empty. */
  readonly only: readonly string[];
}

/** Ends the process with a line about the usage when the arguments are others. */
export function benchOptions(parts: readonly string[]): BenchOptions {
  const usage = `usage: npm run bench -- NAME [--json] [--quick] [--only ${parts.join('|')}]…`;
  try {
    const { values } = parseArgs({
      options: {
        json: { type: 'boolean', default: false },
        quick: { type: 'boolean', default: false },
        only: { type: 'string', multiple: true, default: [] },
      },
    });
    const unknown = values.only.filter((part) => !parts.includes(part));
    if (unknown.length === 0) return values;
    process.stderr.write(`no part ${unknown.join(', ')}\n${usage}\n`);
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n${usage}\n`);
  }
  process.exit(2);
}
