// The one error of everything that reads a guest's own data structures. They are a stranger's bytes: where
// they do not add up, the reader throws this and the freeze goes on without knowing the free pages.

export class GuestLayoutError extends Error {
  override readonly name = 'GuestLayoutError';
}
