// What `sf doctor` says of a host's part in its cluster: every answer of every check, from facts that
// this machine does not have. That the facts are read right `net/doctor` tests.

import type { DoctorCheck } from '@snowfork/sdk/api';
import { expect, test } from 'vitest';
import {
  type ClusterFacts,
  judgeCluster,
  type PeerFacts,
} from '../../packages/clone-agent/src/cluster/examine.js';

const DAY_MS = 24 * 3_600_000;
const NOW_MS = Date.UTC(2026, 5, 1);
const MiB = 1024 * 1024;

function peer(answer: object = {}, name = 'beta'): PeerFacts {
  return { name, answer: { version: '1.0', clockMs: 3, roundTripMs: 1, ...answer } };
}

const good: ClusterFacts = {
  version: '1.0',
  nowMs: NOW_MS,
  certificate: { beganMs: NOW_MS - 10 * DAY_MS, endsMs: NOW_MS + 20 * DAY_MS },
  storeError: undefined,
  members: membersOf('alpha', 'beta', 'gamma'),
  peers: [peer(), peer({}, 'gamma')],
  origins: [{ host: 'beta', delivery: 'group' }],
  buffers: { isFree: false, receiveBytesMax: 4 * MiB, sendBytesMax: 4 * MiB },
};

function membersOf(...names: string[]): ClusterFacts['members'] {
  return names.map((name) => ({ name, isThere: true }));
}

function judged(name: string, facts: Partial<ClusterFacts>): DoctorCheck {
  return judgeCluster({ ...good, ...facts }).find((check) => check.name === name)!;
}

test('a host whose cluster is well passes every check', () => {
  const checks = judgeCluster(good);
  expect(checks.filter(({ status }) => status !== 'ok')).toEqual([]);
  const names = ['certificate', 'store', 'host beta', 'host gamma', 'clocks', 'page delivery'];
  expect(checks.map(({ name }) => name)).toEqual([...names, 'socket buffers']);
});

test.each<[string, 'warn' | 'fail', RegExp, Partial<ClusterFacts>]>([
  [
    'certificate',
    'warn',
    /good for 9 days, until 2026-06-10/,
    { certificate: { beganMs: NOW_MS - 20 * DAY_MS, endsMs: NOW_MS + 9 * DAY_MS } },
  ],
  [
    'certificate',
    'warn',
    /less than a day/,
    { certificate: { beganMs: NOW_MS - 20 * DAY_MS, endsMs: NOW_MS + DAY_MS / 2 } },
  ],
  [
    'certificate',
    'fail',
    /ran out at 2026-05-31/,
    { certificate: { beganMs: NOW_MS - 20 * DAY_MS, endsMs: NOW_MS - DAY_MS } },
  ],
  ['store', 'fail', /no majority/, { storeError: 'no majority', members: [] }],
  [
    'store',
    'fail',
    /no majority; etcd has 3 members \(alpha, beta, gamma\), of which beta, gamma do not answer/,
    {
      storeError: 'no majority',
      members: ['alpha', 'beta', 'gamma'].map((name) => ({ name, isThere: name === 'alpha' })),
    },
  ],
  [
    'store',
    'warn',
    /of which gamma does not answer/,
    { members: [...membersOf('alpha', 'beta'), { name: 'gamma', isThere: false }] },
  ],
  ['store', 'warn', /2 members .*without either/, { members: membersOf('alpha', 'beta') }],
  ['store', 'warn', /1 member \(alpha\).*without it/, { members: membersOf('alpha') }],
  ['host beta', 'warn', /refused/, { peers: [{ name: 'beta', answer: { error: 'refused' } }] }],
  ['host beta', 'warn', /version 0.9/, { peers: [peer({ version: '0.9' })] }],
  ['clocks', 'warn', /^beta is 2.0 s behind$/, { peers: [peer({ clockMs: -2000 })] }],
  [
    'clocks',
    'warn',
    /^beta is 0.7 s ahead; gamma is 9.0 s ahead$/,
    { peers: [peer({ clockMs: 700 }), peer({ clockMs: 9000 }, 'gamma')] },
  ],
  [
    'page delivery',
    'warn',
    /multicast of beta is not heard/,
    {
      origins: [
        { host: 'alpha', delivery: 'group' },
        { host: 'beta', delivery: 'unicast' },
        { host: 'beta', delivery: 'unicast' },
      ],
    },
  ],
  [
    'socket buffers',
    'warn',
    /^net.core.wmem_max is 212992: /,
    { buffers: { isFree: false, receiveBytesMax: 4 * MiB, sendBytesMax: 212_992 } },
  ],
  [
    'socket buffers',
    'warn',
    /rmem_max is not to be seen/,
    { buffers: { isFree: false, receiveBytesMax: undefined, sendBytesMax: undefined } },
  ],
])('%s is %s', (name, status, message, facts) => {
  const check = judged(name, facts);
  expect(check).toMatchObject({ status, message: expect.stringMatching(message) });
  expect(check.mend).toBeTruthy();
});

test('two hosts have one member, and can have no more', () => {
  const two = { members: membersOf('alpha'), peers: [peer()] };
  expect(judged('store', two)).toMatchObject({
    status: 'ok',
    message: 'etcd has 1 member (alpha), and all answer',
  });
});

test('a clock is not said to be wrong by less than the way of the answer', () => {
  const slow = { peers: [peer({ clockMs: 1000, roundTripMs: 1900 })] };
  expect(judged('clocks', slow).status).toBe('ok');
});

test('whoever gets any buffer needs no limit of the system', () => {
  const buffers = { isFree: true, receiveBytesMax: 212_992, sendBytesMax: undefined };
  expect(judged('socket buffers', { buffers }).status).toBe('ok');
});

test('where no pages come from elsewhere, nothing is said of multicast', () => {
  expect(judged('page delivery', { origins: [] })).toMatchObject({
    status: 'ok',
    message: 'no pages of other hosts come here now',
  });
});
