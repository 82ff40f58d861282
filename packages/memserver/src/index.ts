export * from './page-map.js';
