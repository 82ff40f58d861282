// The one error of everything that reads a guest's own data structures. They are a stranger's bytes: where
// they do not add up, the reader throws this and the freeze goes on without knowing the free pages.

export class GuestLayoutError extends Error {
  override readonly name: string = 'GuestLayoutError';
}

/** What leads on lies on a page of another host that is not on this one. */
export class AbsentPageError extends GuestLayoutError {
  override readonly name = 'AbsentPageError';
  readonly page: number;

  constructor(page: number) {
    super(`page ${page} is on another host`);
    this.page = page;
  }
}
