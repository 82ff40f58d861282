// Pages of objects on this host, without the network: what threads load that have to start at once.

export * from './held-pages.js';
export * from './object.js';
export * from './page-map.js';
