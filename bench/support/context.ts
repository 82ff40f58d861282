// What every part of a bench gets from the bench.

import type { Quiet } from './machine.js';
import type { BenchOptions } from './options.js';

export interface BenchContext {
  readonly options: BenchOptions;
  readonly quiet: Quiet;
  /** Tells people how far it is; standard output is kept for the result. */
  readonly say: (words: string) => void;
}
