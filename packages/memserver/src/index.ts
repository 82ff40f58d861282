export * from './object.js';
export * from './page-map.js';
