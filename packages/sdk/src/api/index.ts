export * from './cluster.js';
export * from './doctor.js';
export * from './errors.js';
export * from './guest.js';
export * from './port.js';
export * from './schemas.js';
export * from './state-folder.js';
export * from './value.js';
