// Pages and where they are, without the network: what the pager's threads load. They start in a
// hurry, as faults wait for them, and loading the rest takes longer than all else that they do.

export * from './held-pages.js';
export * from './mapped-file.js';
export * from './object.js';
export * from './page-map.js';
