// Asking for pages from another thread than the receiver's: what the pager's serving threads load
// beside `pages.ts`, in a hurry.

export * from './net/page-asker.js';
