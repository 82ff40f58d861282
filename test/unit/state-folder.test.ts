// Where an agent keeps everything when nobody says where, for root and for others.

import { afterEach, describe, expect, test, vi } from 'vitest';
import {
  assertStateFolderLength,
  defaultStateFolder,
  STATE_FOLDER_BYTES_MAX,
  STATE_FOLDER_DEFAULT,
} from '../../packages/sdk/src/api/state-folder.js';
import { connect } from '../../packages/sdk/src/host/connect.js';

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
});

function beUser(id: number): void {
  vi.spyOn(process as Required<NodeJS.Process>, 'getuid').mockReturnValue(id);
}

describe('the state folder', () => {
  test("is the host's for root, whatever its environment says", () => {
    beUser(0);
    expect(defaultStateFolder({ XDG_STATE_HOME: '/x' })).toBe(STATE_FOLDER_DEFAULT);
  });

  test("is in the user's home for others, or where XDG_STATE_HOME says", () => {
    beUser(1000);
    vi.stubEnv('HOME', '/home/u');
    expect(defaultStateFolder({})).toBe('/home/u/.local/state/snowfork');
    expect(defaultStateFolder({ XDG_STATE_HOME: '/x/state' })).toBe('/x/state/snowfork');
    // As the specification has it: a relative path is to be ignored.
    expect(defaultStateFolder({ XDG_STATE_HOME: 'x' })).toBe('/home/u/.local/state/snowfork');
  });

  test('may be just so long that the sockets below it have addresses', async () => {
    const longest = `/${'x'.repeat(STATE_FOLDER_BYTES_MAX - 1)}`;
    expect(() => assertStateFolderLength(longest)).not.toThrow();
    await expect(connect({ stateFolder: `${longest}x` })).rejects.toMatchObject({
      code: 'SF_BAD_REQUEST',
      message: expect.stringContaining('SNOWFORK_STATE'),
    });
  });
});
