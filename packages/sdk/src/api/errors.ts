// Every error that a user of Snowfork can meet, in one registry. The codes are stable: programs
// compare them, `docs/reference/errors.md` is generated from this table, and the HTTP API maps each
// to a status. A programmer's error is not here: it is an assertion and ends the process.

interface ErrorEntry {
  /** HTTP status of the agent's API. */
  readonly status: number;
  /** Exit code of the `sf` command. */
  readonly exitCode: number;
  /** What it means and what to do, one line; the documentation is made of these. */
  readonly help: string;
}

export const errorRegistry = {
  SF_BAD_REQUEST: {
    status: 400,
    exitCode: 2,
    help: 'An argument is not of the form asked for; the message names it and what is accepted.',
  },
  SF_IMAGE_NOT_FOUND: {
    status: 404,
    exitCode: 4,
    help: 'No image of that name is built on this host: `sf image ls` lists them, `sf image build NAME` makes one.',
  },
  SF_VM_NOT_FOUND: {
    status: 404,
    exitCode: 4,
    help: 'No VM of that id is known: `sf ps --all` lists the running ones and those that ended lately.',
  },
  SF_SNAPSHOT_NOT_FOUND: {
    status: 404,
    exitCode: 4,
    help: 'No snapshot of that id is kept: `sf snapshot ls` lists them.',
  },
  SF_TICKET_NOT_FOUND: {
    status: 404,
    exitCode: 4,
    help: 'No ticket of that id is known to this VM; tickets are forgotten when their parent has gone.',
  },
  SF_EXEC_NOT_FOUND: {
    status: 404,
    exitCode: 4,
    help: 'No running command of that id: it may have ended already.',
  },
  SF_TICKET_USED: {
    status: 409,
    exitCode: 5,
    help: 'A ticket serves one fork; ask for a new one.',
  },
  SF_SNAPSHOT_IN_USE: {
    status: 409,
    exitCode: 5,
    help: 'VMs or newer snapshots still need its pages; the message names them. End them first.',
  },
  SF_GUEST_NOT_READY: {
    status: 409,
    exitCode: 5,
    help: 'The guest side does not answer: the guest is still starting, hangs or has crashed. See `sf console`.',
  },
  SF_VM_GONE: {
    status: 410,
    exitCode: 5,
    help: 'The VM has ended; the message says how.',
  },
  SF_FORKED_AWAY: {
    status: 409,
    exitCode: 5,
    help: 'The request was made by the parent before the fork; it goes on there. In the clone, ask again.',
  },
  SF_INCOMPATIBLE: {
    status: 409,
    exitCode: 5,
    help: 'This host cannot run the snapshot (accelerator, CPU model or QEMU version differ); the message says which.',
  },
  SF_VALUE_TOO_LARGE: {
    status: 413,
    exitCode: 5,
    help: 'The value is larger than VALUE_BYTES_MAX; hand over a reference (a file, a key) instead.',
  },
  SF_NO_ROOM: {
    status: 507,
    exitCode: 6,
    help: 'The host has no room for one more VM; the message says how much is missing. End VMs or use a smaller image.',
  },
  SF_LIMIT: {
    status: 429,
    exitCode: 6,
    help: 'The family of this VM has reached a limit that the owner of the host has set; the message names the setting.',
  },
  SF_LAYERS_FULL: {
    status: 507,
    exitCode: 6,
    help: 'The tmpfs for layers is full; the VM was not harmed. Delete snapshots or raise `layersBytesMax`.',
  },
  SF_TIMEOUT: {
    status: 504,
    exitCode: 7,
    help: 'The deadline passed; what was asked for may still be going on.',
  },
  SF_ABORTED: {
    status: 499,
    exitCode: 130,
    help: 'The caller gave up (AbortSignal or a closed connection).',
  },
  SF_CLONE_FAILED: {
    status: 500,
    exitCode: 8,
    help: 'A clone did not come up; its siblings are not touched. The message has the reason.',
  },
  SF_IDENTITY_FAILED: {
    status: 500,
    exitCode: 8,
    help: 'What has to differ between a VM and its clones (random generators, hooks of `sf.onFork`) could not be renewed; the message says what is missing.',
  },
  SF_IMAGE_BUILD_FAILED: {
    status: 500,
    exitCode: 9,
    help: 'The image was not built and nothing half-made was left; the message names the step and shows the end of its output.',
  },
  SF_QEMU_MISSING: {
    status: 500,
    exitCode: 10,
    help: 'QEMU 7.2 or later is needed: install the Debian package qemu-system-x86.',
  },
  SF_QEMU_FAILED: {
    status: 500,
    exitCode: 8,
    help: 'QEMU ended or refused a command; the message has its words.',
  },
  SF_PERMISSION: {
    status: 403,
    exitCode: 11,
    help: 'The system refused access; the message says to what.',
  },
  SF_AGENT_UNREACHABLE: {
    status: 503,
    exitCode: 3,
    help: 'The agent of this host does not answer: start it with `sf up`, and see agent.log in the state folder.',
  },
  SF_HOST_UNREACHABLE: {
    status: 503,
    exitCode: 3,
    help: 'Another host of the cluster does not answer: `sf host ls` says whether it is up. What it runs may go on.',
  },
  SF_CLUSTER_UNAVAILABLE: {
    status: 503,
    exitCode: 3,
    help: "The cluster's store (etcd) does not answer, or lacks its majority. Running clones go on; new tickets are refused until it is back: `sf doctor` says which of its members do not answer.",
  },
  SF_HOST_NOT_FOUND: {
    status: 404,
    exitCode: 4,
    help: 'The cluster has no host of that name: `sf host ls` lists them.',
  },
  SF_NO_CLUSTER: {
    status: 409,
    exitCode: 5,
    help: 'This host is in no cluster: `sf cluster init` makes one, `sf host join` joins one.',
  },
  SF_INTERNAL: {
    status: 500,
    exitCode: 70,
    help: 'A fault in Snowfork itself; agent.log has the trace. Please report it.',
  },
} as const satisfies Record<string, ErrorEntry>;

export type ErrorCode = keyof typeof errorRegistry;

/** The one error type that leaves Snowfork. The message says what happened and what to do. */
export class SnowforkError extends Error {
  override readonly name = 'SnowforkError';
  readonly code: ErrorCode;
  /** Facts for programs, such as the users of a snapshot; JSON values only. */
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    code: ErrorCode,
    message: string,
    options: { cause?: unknown; details?: Record<string, unknown> } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.details = options.details ?? {};
  }

  toJSON(): { code: ErrorCode; message: string; details: Readonly<Record<string, unknown>> } {
    return { code: this.code, message: this.message, details: this.details };
  }

  /** The inverse of `toJSON`; an unknown code (a newer peer's) becomes SF_INTERNAL. */
  static fromJSON(json: unknown): SnowforkError {
    const fields =
      typeof json === 'object' && json !== null ? (json as Record<string, unknown>) : {};
    const known = typeof fields.code === 'string' && Object.hasOwn(errorRegistry, fields.code);
    const details =
      typeof fields.details === 'object' && fields.details !== null ? fields.details : {};
    return new SnowforkError(
      known ? (fields.code as ErrorCode) : 'SF_INTERNAL',
      typeof fields.message === 'string'
        ? fields.message
        : `unreadable error: ${JSON.stringify(json)}`,
      { details: details as Record<string, unknown> },
    );
  }

  /** `error` itself when it is ours already, else wrapped as `code` with its cause kept. */
  static from(error: unknown, code: ErrorCode = 'SF_INTERNAL'): SnowforkError {
    if (error instanceof SnowforkError) return error;
    const message = error instanceof Error ? error.message : String(error);
    return new SnowforkError(code, message, { cause: error });
  }
}
