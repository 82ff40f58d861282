// A search that branches: the shortest round trip through the points of a grid. Each generation tries
// a few continuations of one state, in a clone each; the best of them becomes the state that the next
// generation branches from. The state is a whole VM with all that its program has in memory; nothing of
// it is ever packed or sent. What travels is the length of a tour and the name of a checkpoint.
//
//   root ─┬─ branch 1
//         ├─ branch 2 ── best ─┬─ branch 1
//         └─ branch 3          ├─ branch 2
//                              └─ branch 3 ── best ─ …
//
// Runs inside a VM of the image `node`; arguments: [branches] [generations] [steps of a branch]. With
// `--alone` it does the same without clones, anywhere: one branch after the other, on copies.
//
//   vm=$(sf launch node)
//   sf exec $vm -i -- node --input-type=module - <examples/dist/04-branching/branching.js

import { sf } from '@snowfork/sdk/guest';

const COLUMNS = 8;
const ROWS = 6;
/** A grid with an even number of points has a round trip of which every step is of length 1. */
const SHORTEST = COLUMNS * ROWS;
const HOTTEST = 1;
/** Of each generation's temperature over that of the one before. */
const COOLING = 0.6;

const alone = process.argv.includes('--alone');
const numbers = process.argv.slice(2).filter((word) => /^\d+$/.test(word));
const [branches = 4, generations = 6, steps = 5000] = numbers.map(Number);

/** Simulated annealing (Kirkpatrick, Gelatt, Vecchi, 1983) by turning round parts of a tour. */
class Search {
  readonly tour: number[];
  readonly distances: number[];
  generation = 0;

  constructor({ tour, distances, generation }: Pick<Search, 'tour' | 'distances' | 'generation'>) {
    this.tour = [...tour];
    this.distances = [...distances];
    this.generation = generation;
  }

  /** What a branch does; its number is all that it has of its own. */
  explore(branch: number): void {
    const temperature = HOTTEST * COOLING ** this.generation;
    this.generation += 1;
    const random = xorshift(this.generation * 1000 + branch);
    for (let step = 0; step < steps; step++) {
      const heat = (temperature * (steps - step)) / steps;
      const first = 1 + Math.floor(random() * (SHORTEST - 1));
      const last = 1 + Math.floor(random() * (SHORTEST - 1));
      const gain = this.#gainOfTurning(Math.min(first, last), Math.max(first, last));
      if (gain > heat * Math.log(random())) turn(this.tour, first, last);
    }
  }

  length(): number {
    return this.tour.reduce(
      (sum, city, at) => sum + this.#distance(city, this.tour[at - 1] ?? this.tour.at(-1)!),
      0,
    );
  }

  #gainOfTurning(first: number, last: number): number {
    const before = this.tour[first - 1]!;
    const after = this.tour[(last + 1) % SHORTEST]!;
    const [from, to] = [this.tour[first]!, this.tour[last]!];
    const now = this.#distance(before, from) + this.#distance(to, after);
    return now - this.#distance(before, to) - this.#distance(from, after);
  }

  #distance(a: number, b: number): number {
    return this.distances[a * SHORTEST + b]!;
  }
}

/** What a branch hands over. */
interface Branch {
  readonly length: number;
  readonly tour: readonly number[];
  readonly checkpoint: string;
}

const root = new Search({ tour: shuffled(), distances: measured(), generation: 0 });
process.stdout.write(`${COLUMNS} × ${ROWS} points, at random: ${root.length().toFixed(3)}\n`);
const best = alone ? branchOnCopies() : await branchInClones();
const visited = new Set(best.tour).size;
process.stdout.write(
  `shortest found: ${best.length.toFixed(3)} through ${visited} points; shortest there is: ${SHORTEST}\n`,
);

async function branchInClones(): Promise<Branch> {
  const { checkpoint, restored, id } = await sf.checkpointParent();
  // Every branch begins here, those of the first generation with this very state.
  if (restored) await liveAsBranch(id);
  let best: Branch | undefined;
  for (let generation = 0; generation < generations; generation++) {
    const ticket = await sf.requestTicket(branches);
    if (ticket.clones < branches) throw new Error(`${ticket.clones} branches: ${ticket.reason}`);
    await sf.createClones(best?.checkpoint ?? checkpoint, ticket);
    const tried = (await sf.join<Branch>(ticket)).map((result) => {
      if (result.status === 'rejected') throw result.reason;
      return result.value;
    });
    best = pick(tried);
  }
  return best!;
}

/** In a clone; a branch that is picked lives again, as many times as it has branches. */
async function liveAsBranch(branch: number): Promise<never> {
  for (let number = branch; ; ) {
    root.explore(number);
    const { checkpoint, restored, id } = await sf.checkpointParent();
    if (!restored) await sf.exit({ length: root.length(), tour: root.tour, checkpoint });
    number = id;
  }
}

function branchOnCopies(): Branch {
  let state = root;
  let best: Branch | undefined;
  for (let generation = 0; generation < generations; generation++) {
    const copies: Search[] = Array.from({ length: branches }, () => new Search(state));
    for (const [index, copy] of copies.entries()) copy.explore(index + 1);
    const tried: Branch[] = copies.map((copy) => ({
      ...copy,
      length: copy.length(),
      checkpoint: '',
    }));
    best = pick(tried);
    state = copies[tried.indexOf(best)]!;
  }
  return best!;
}

function pick(tried: Branch[]): Branch {
  const best = tried.reduce((a, b) => (b.length < a.length ? b : a));
  const lengths = tried.map(({ length }) => length.toFixed(3));
  process.stdout.write(`branches: ${lengths.join(' ')}; on from ${tried.indexOf(best) + 1}\n`);
  return best;
}

function turn(tour: number[], first: number, last: number): void {
  let [from, to] = first < last ? [first, last] : [last, first];
  for (; from < to; from++, to--) [tour[from], tour[to]] = [tour[to]!, tour[from]!];
}

function measured(): number[] {
  const points = Array.from({ length: SHORTEST }, (_, city) => [
    city % COLUMNS,
    Math.floor(city / COLUMNS),
  ]);
  return points.flatMap(([x, y]) =>
    points.map(([u, v]) => Math.sqrt((x! - u!) ** 2 + (y! - v!) ** 2)),
  );
}

function shuffled(): number[] {
  const random = xorshift(2009);
  const tour = Array.from({ length: SHORTEST }, (_, city) => city);
  for (let at = SHORTEST - 1; at > 0; at--) {
    const other = Math.floor(random() * (at + 1));
    [tour[at], tour[other]] = [tour[other]!, tour[at]!];
  }
  return tour;
}

/** Marsaglia's xorshift, 32 bits: uniform in (0, 1). `Math.random` would be another in each clone. */
function xorshift(seed: number): () => number {
  let state = (seed * 2_654_435_761) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return (state + 0.5) / 4_294_967_296;
  };
}
