// Runs inside the VM: prices 64 options by Monte Carlo, in as many clones as the arguments say. The
// closures and the table that they use need no packing: a clone has its parent's whole memory.

import { sf } from '@snowfork/sdk/guest';

interface Option {
  readonly spot: number;
  readonly strike: number;
  readonly rate: number;
  readonly volatility: number;
  readonly years: number;
}

const clones = Number(process.argv[2] ?? 8);
const paths = Number(process.argv[3] ?? 20_000);

const options: Option[] = Array.from({ length: 64 }, (_, index) => ({
  spot: 100,
  strike: 70 + index,
  rate: 0.03,
  volatility: 0.15 + 0.005 * (index % 16),
  years: 0.5 + 0.25 * (index % 8),
}));

const startedAt = performance.now();
const prices = await sf.map(options, (option, index) => monteCarlo(option, index + 1), { clones });
const elapsedMs = performance.now() - startedAt;

const results = options.map((option, index) => ({
  strike: option.strike,
  simulated: prices[index]!.price,
  standardError: prices[index]!.standardError,
  exact: blackScholes(option),
}));
process.stdout.write(`${JSON.stringify({ elapsedMs, paths, results })}\n`);

/** A European call's price, by the mean of its discounted pay-offs; the seed makes it repeatable. */
function monteCarlo(option: Option, seed: number): { price: number; standardError: number } {
  const { spot, strike, rate, volatility, years } = option;
  const drift = (rate - volatility ** 2 / 2) * years;
  const spread = volatility * Math.sqrt(years);
  const random = xorshift(seed);
  let sum = 0;
  let sumOfSquares = 0;
  for (let path = 0; path < paths; path++) {
    const normal = Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
    const payOff = Math.max(0, spot * Math.exp(drift + spread * normal) - strike);
    sum += payOff;
    sumOfSquares += payOff * payOff;
  }
  const discount = Math.exp(-rate * years);
  const mean = sum / paths;
  const variance = sumOfSquares / paths - mean * mean;
  return { price: discount * mean, standardError: discount * Math.sqrt(variance / paths) };
}

/** Black and Scholes, "The Pricing of Options and Corporate Liabilities", 1973. */
function blackScholes({ spot, strike, rate, volatility, years }: Option): number {
  const spread = volatility * Math.sqrt(years);
  const d1 = (Math.log(spot / strike) + (rate + volatility ** 2 / 2) * years) / spread;
  return spot * normalCdf(d1) - strike * Math.exp(-rate * years) * normalCdf(d1 - spread);
}

/** Abramowitz and Stegun 26.2.17; the error is below 7.5e-8. */
function normalCdf(x: number): number {
  const t = 1 / (1 + 0.2316419 * Math.abs(x));
  const poly =
    t *
    (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
  const tail = (Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI)) * poly;
  return x >= 0 ? 1 - tail : tail;
}

/** Marsaglia's xorshift, 32 bits: uniform in (0, 1). */
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
