// The agent's end of one guest's port: the handshake around a freeze, the requests of the guest's
// programs, and the commands that the host runs there. It decides nothing: requests go to the owner's
// handlers. A guest that breaks the protocol loses its channel and harms nobody else.

import { randomInt } from 'node:crypto';
import net from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import {
  decodeLines,
  decodeValue,
  type ExecRequest,
  encodeFrame,
  encodeLines,
  encodeMessage,
  encodeValue,
  type Frame,
  FrameError,
  FrameType,
  type GuestMethod,
  guestRequestSchema,
  MESSAGE_BYTES_MAX,
  MessageAssembler,
  SnowforkError,
} from '@snowfork/sdk/api';
import { untilAborted } from '../system/until-aborted.js';
import { GuestClock, nanoseconds, readMonotonic } from './clock.js';
import { encodeExec, GuestExec, withResolvers } from './exec.js';
import { FrameIntake } from './frame-intake.js';

/** Requests of one guest that may wait for their answer. */
export const REQUESTS_PENDING_MAX = 256;
/** Commands of one guest that may run at a time. */
export const EXECS_MAX = 256;
const EXEC_NUMBER_MAX = 2 ** 32;

/** A program's request that waits for its answer; copied, unanswered, into every clone. */
export interface PendingRequest {
  readonly stream: number;
  readonly id: number;
  readonly method: GuestMethod;
}

export interface ChannelHandlers {
  /** The guest's own word that it is ready: after its boot, or when its side was started anew. */
  hello(facts: Map<string, string>): void;
  /** A program asks; the answer goes through `respond`. */
  request(request: PendingRequest, params: unknown): void;
  /** The connection of a program ended. */
  closed(stream: number): void;
  /** Output of a command that this VM inherited, or words about the channel itself. */
  log(bytes: Buffer): void;
  /** The channel is of no more use. */
  lost(reason: string): void;
  /** After `lost`: it is so because the guest sent what no guest side sends. */
  broken?(reason: string): void;
}

export interface ResumeFacts {
  readonly fork: string;
  readonly role: 'parent' | 'clone' | 'failed';
  readonly id: number;
  readonly hostname: string;
  readonly entropy: Buffer;
}

interface Handshake extends ReturnType<typeof withResolvers<Map<string, string>>> {
  readonly type: 'prepared' | 'resumed' | 'pong';
  readonly fork: string;
}

const WORD: Readonly<Record<Handshake['type'], string>> = {
  prepared: 'become quiet',
  resumed: 'come back',
  pong: 'answer',
};

export interface ChannelOptions {
  /** The guest is a clone whose port begins with RESUME. */
  readonly frozen: boolean;
  /** A guest that takes longer to become quiet, or to come back, is not ready. */
  readonly timeoutMs: number;
}

export class GuestChannel {
  readonly clock = new GuestClock();
  readonly #socket: net.Socket;
  readonly #handlers: ChannelHandlers;
  readonly #intake: FrameIntake;
  readonly #timeoutMs: number;
  readonly #assembler = new MessageAssembler();
  readonly #execs = new Map<number, GuestExec>();
  readonly #pending = new Map<string, PendingRequest>();
  #handshake: Handshake | undefined;
  /** What must not be sent between PREPARE and RESUMED; undefined when the port is open. */
  #held: Buffer[] | undefined;
  #heldBytes = 0;
  /** Written to the socket and not taken by QEMU yet. */
  #unreadFrames = 0;
  /** Answered while the port was held: the guest that is frozen just now has no answer yet. */
  #answeredHeld: PendingRequest[] = [];
  /** A RESUME that is under way; settles when the guest has come back, or has not in time. */
  #resuming: Promise<void> | undefined;
  /** The freeze that the guest has not come back from, though it should have. */
  #away: string | undefined;
  #lost: string | undefined;

  private constructor(socket: net.Socket, handlers: ChannelHandlers, options: ChannelOptions) {
    this.#socket = socket;
    this.#handlers = handlers;
    this.#timeoutMs = options.timeoutMs;
    this.#held = options.frozen ? [] : undefined;
    this.#intake = new FrameIntake(socket, {
      take: (frame) => this.#take(frame),
      isFull: () => this.#isUnread(),
      broke: (error) => this.#broke(error),
    });
    socket.on('close', () => this.#lose('the port was closed'));
    socket.on('error', () => {});
  }

  /** Connects to the port of a QEMU that listens already. */
  static async connect(
    path: string,
    handlers: ChannelHandlers,
    options: ChannelOptions,
  ): Promise<GuestChannel> {
    const socket = net.connect(path);
    const connected = withResolvers<void>();
    socket.once('connect', connected.resolve);
    socket.once('error', connected.reject);
    await connected.promise;
    return new GuestChannel(socket, handlers, options);
  }

  get usable(): boolean {
    return this.#lost === undefined;
  }

  /** The requests that a freeze would copy into clones. */
  pendingRequests(): PendingRequest[] {
    return [...this.#pending.values(), ...this.#answeredHeld];
  }

  /**
   * Asks the guest to become quiet, when it has come back from the freeze before; from then until
   * `resume` nothing is sent or received.
   * @throws SnowforkError SF_GUEST_NOT_READY when it does not answer in time.
   */
  async prepare(fork: string, signal: AbortSignal): Promise<void> {
    if (this.#resuming !== undefined) await this.#resuming;
    this.#assertUsable();
    this.#held = [];
    try {
      await this.#look('prepared', FrameType.prepare, fork, signal);
      // Once for all clones, and its programs do not run.
      await this.#narrowClock(signal);
    } catch (error) {
      // It may become quiet all the same, and late: tell it that nothing came of it. Its clock has
      // not stood still, so it is told no time, which would be an old one by then.
      this.#write(encodeFrame(FrameType.resume, 0, encodeLines({ fork, role: 'failed' })));
      this.#release();
      throw error;
    }
  }

  /**
   * Ends the quiet: the guest repairs its identity and answers. `first` goes out in the same breath
   * and reaches programs only after the repair.
   * @throws SnowforkError SF_CLONE_FAILED when the repair failed, SF_GUEST_NOT_READY without answer.
   */
  resume(facts: ResumeFacts, signal: AbortSignal, first: Buffer[] = []): Promise<void> {
    const resumed = this.#resume(facts, signal, first);
    const resuming = resumed
      .catch(() => {})
      .then(() => {
        if (this.#resuming === resuming) this.#resuming = undefined;
      });
    this.#resuming = resuming;
    return resumed;
  }

  /**
   * Looks at the guest's clock a few times, which is worth the most while nothing else goes on.
   * @throws SnowforkError SF_GUEST_NOT_READY when it does not answer in time.
   */
  async observeClock(signal: AbortSignal): Promise<void> {
    for (let look = 0; look < CLOCK_LOOKS; look++) {
      this.#assertUsable();
      await this.#look('pong', FrameType.ping, `clock${look}`, signal);
    }
  }

  /** Answers a program. In a clone that has not resumed yet, use `encodeResponse` with `resume`. */
  respond(request: PendingRequest, answer: Answer): void {
    if (!this.#pending.delete(requestKey(request))) return;
    if (this.#held !== undefined) this.#answeredHeld.push(request);
    this.#send(encodeFitting(request, answer));
  }

  /** The request is answered by other means: with `resume`. */
  forget(request: PendingRequest): void {
    this.#pending.delete(requestKey(request));
  }

  /**
   * Runs a command; while the guest is being frozen it waits for the end of that.
   * @throws SnowforkError SF_GUEST_NOT_READY, SF_BAD_REQUEST.
   */
  async exec(request: ExecRequest, signal: AbortSignal): Promise<GuestExec> {
    this.#assertUsable();
    if (this.#execs.size >= EXECS_MAX) {
      throw new SnowforkError('SF_BAD_REQUEST', `${EXECS_MAX} commands run in this VM already`);
    }
    const exec = new GuestExec(newExecNumber(), (frame) => this.#send(frame));
    const frame = encodeExec(exec.exec, request);
    this.#execs.set(exec.exec, exec);
    signal.addEventListener('abort', () => exec.signal(SIGKILL), { once: true });
    this.#send(frame);
    if (request.stdin !== true) exec.closeStdin();
    await exec.started();
    return exec;
  }

  session(exec: number): GuestExec | undefined {
    return this.#execs.get(exec);
  }

  close(): void {
    this.#lose('the VM has ended');
    this.#socket.destroy();
  }

  async #resume(facts: ResumeFacts, signal: AbortSignal, first: Buffer[]): Promise<void> {
    this.#assertUsable();
    this.#away = facts.fork;
    // After a freeze that failed it has not stood still.
    if (facts.role !== 'failed') await this.#narrowClock(signal);
    const originMs = facts.role === 'failed' ? undefined : this.clock.originMs();
    const frames = Buffer.concat([encodeResume(facts, originMs), ...first]);
    await this.#shake('resumed', facts.fork, signal, frames);
  }

  /**
   * Looks at a clock that is known badly, mostly because QEMU lost the processor between its word that
   * the guest goes on and that. The guest answers while it is quiet, too. What is known best when it
   * has been looked at often is good enough; of a VM that was taken over there is no clock.
   */
  async #narrowClock(signal: AbortSignal): Promise<void> {
    const until = performance.now() + this.#timeoutMs;
    for (let look = 0; look < NARROWING_LOOKS_MAX && performance.now() < until; look++) {
      if ((this.clock.errorMsMax() ?? 0) <= CLOCK_ERROR_MS_MAX) return;
      await this.#look('pong', FrameType.ping, `narrow${look}`, signal);
    }
  }

  /** A handshake whose answer says what the guest's monotonic clock shows. */
  async #look(
    type: 'prepared' | 'pong',
    frameType: FrameType,
    fork: string,
    signal: AbortSignal,
  ): Promise<void> {
    const sentAtMs = performance.now();
    const frame = encodeFrame(frameType, 0, encodeLines({ fork }));
    const facts = await this.#shake(type, fork, signal, frame);
    const monotonicMs = readMonotonic(facts.get('monotonic'));
    if (monotonicMs === undefined) return;
    this.clock.observe({ monotonicMs, sentAtMs, receivedAtMs: performance.now() });
  }

  async #shake(
    type: Handshake['type'],
    fork: string,
    signal: AbortSignal,
    frame: Buffer,
  ): Promise<Map<string, string>> {
    const handshake = { type, fork, ...withResolvers<Map<string, string>>() };
    handshake.promise.catch(() => {});
    this.#handshake = handshake;
    const deadline = new AbortController();
    try {
      this.#write(frame);
      const late = delay(this.#timeoutMs, undefined, { signal: deadline.signal, ref: false });
      const answered = Promise.race([
        handshake.promise,
        late.then(() => {
          const message = `the guest did not ${WORD[type]} within ${this.#timeoutMs} ms`;
          throw new SnowforkError('SF_GUEST_NOT_READY', `${message}; see \`sf console\``);
        }),
      ]);
      return await untilAborted(answered, signal);
    } finally {
      deadline.abort();
      if (this.#handshake === handshake) this.#handshake = undefined;
    }
  }

  #broke(error: FrameError): void {
    const reason = `the guest broke the protocol: ${error.message}`;
    this.#lose(reason);
    this.#socket.destroy();
    this.#handlers.broken?.(reason);
  }

  #take(frame: Frame): void {
    switch (frame.type) {
      case FrameType.hello:
        this.#restart();
        this.#handlers.hello(decodeLines(frame.payload));
        return;
      case FrameType.prepared:
      case FrameType.resumed:
      case FrameType.pong:
        this.#takeHandshake(frame);
        return;
      case FrameType.request:
        this.#takeRequest(frame);
        return;
      case FrameType.closed:
        this.#assembler.drop(frame.stream);
        for (const [key, request] of this.#pending) {
          if (request.stream === frame.stream) this.#pending.delete(key);
        }
        this.#handlers.closed(frame.stream);
        return;
      case FrameType.ping:
        this.#send(encodeFrame(FrameType.pong, 0, frame.payload));
        return;
      case FrameType.started:
      case FrameType.stdout:
      case FrameType.stderr:
      case FrameType.exit:
      case FrameType.credit:
        this.#takeExec(frame);
        return;
      default:
        throw new FrameError(`frame type ${frame.type} is not for the agent`);
    }
  }

  #takeHandshake(frame: Frame): void {
    const facts = decodeLines(frame.payload);
    const handshake = this.#handshake;
    const error = facts.get('error')?.slice(0, GUEST_WORDS_LENGTH_MAX);
    // At once, and also after the deadline: what was held goes before all that comes of this chunk's
    // next frame, which may be a program's request for another fork.
    if (
      frame.type === FrameType.resumed &&
      facts.get('fork') === this.#away &&
      error === undefined
    ) {
      this.#away = undefined;
      this.#release();
    }
    if (handshake === undefined || frame.type !== FrameType[handshake.type]) return;
    if (handshake.fork !== facts.get('fork')) return;
    this.#handshake = undefined;
    if (handshake.type === 'resumed') this.#resuming = undefined;
    if (error === undefined) handshake.resolve(facts);
    else handshake.reject(new SnowforkError('SF_CLONE_FAILED', `identity repair failed: ${error}`));
  }

  #takeRequest(frame: Frame): void {
    const message = this.#assembler.push(frame);
    if (message === undefined) return;
    const parsed = guestRequestSchema.safeParse(decodeOrUndefined(message));
    if (!parsed.success) throw new FrameError('a request is not of the form agreed');
    const { id, method, params } = parsed.data;
    const request: PendingRequest = { stream: frame.stream, id, method };
    if (this.#pending.size >= REQUESTS_PENDING_MAX) {
      const error = new SnowforkError('SF_BAD_REQUEST', 'too many requests wait for their answer');
      this.#send(encodeResponse(request, { error }));
      return;
    }
    this.#pending.set(requestKey(request), request);
    this.#handlers.request(request, params);
  }

  #takeExec(frame: Frame): void {
    const exec = this.#execs.get(frame.stream);
    if (exec !== undefined) {
      exec.take(frame);
      if (exec.ended) this.#execs.delete(frame.stream);
    } else if (frame.type === FrameType.stdout || frame.type === FrameType.stderr) {
      this.#handlers.log(frame.payload);
      const bytes = frame.payload.length;
      this.#send(encodeFrame(FrameType.credit, frame.stream, encodeLines({ bytes })));
    }
  }

  /** The guest side was started anew: what it knew of commands and requests is gone. */
  #restart(): void {
    const failure = new SnowforkError('SF_GUEST_NOT_READY', 'the guest side was started anew');
    for (const exec of this.#execs.values()) exec.fail(failure);
    this.#execs.clear();
    this.#pending.clear();
    this.#handshake?.reject(failure);
    // What was held concerns those too.
    this.#away = undefined;
    this.#held = undefined;
    this.#heldBytes = 0;
    this.#answeredHeld = [];
  }

  #send(frame: Buffer): void {
    if (this.#held === undefined) {
      this.#write(frame);
      return;
    }
    this.#heldBytes += frame.length;
    if (this.#held.length < HELD_FRAMES_MAX && this.#heldBytes <= HELD_BYTES_MAX) {
      this.#held.push(frame);
    } else this.#lose('too much was sent to a frozen guest');
  }

  #write(frame: Buffer): void {
    if (this.#lost !== undefined) return;
    this.#unreadFrames++;
    this.#socket.write(frame, () => {
      this.#unreadFrames--;
      if (!this.#isUnread()) this.#intake.goOn();
    });
  }

  #isUnread(): boolean {
    return this.#unreadFrames > UNREAD_FRAMES_MAX || this.#socket.writableLength > UNREAD_BYTES_MAX;
  }

  #release(): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    this.#heldBytes = 0;
    this.#answeredHeld = [];
    for (const frame of held) this.#write(frame);
  }

  #lose(reason: string): void {
    if (this.#lost !== undefined) return;
    this.#lost = reason;
    this.#intake.stop();
    const failure = new SnowforkError('SF_VM_GONE', reason);
    for (const exec of this.#execs.values()) exec.fail(failure);
    this.#execs.clear();
    this.#pending.clear();
    this.#handshake?.reject(failure);
    this.#handlers.lost(reason);
  }

  #assertUsable(): void {
    if (this.#lost !== undefined) {
      throw new SnowforkError('SF_GUEST_NOT_READY', `the guest side is gone: ${this.#lost}`);
    }
    // While it is expected back, what is sent is held.
    if (this.#away !== undefined && this.#resuming === undefined) {
      throw new SnowforkError(
        'SF_GUEST_NOT_READY',
        'the guest has not come back from the last freeze; see `sf console`',
      );
    }
  }
}

/**
 * For a command, by chance: a clone inherits running commands with their numbers, whichever hosts its
 * ancestors were on, and must not give them again.
 */
function newExecNumber(): number {
  return randomInt(1, EXEC_NUMBER_MAX);
}

const SIGKILL = 9;
/** The first ones also make the guest warm. */
const CLOCK_LOOKS = 5;
/** With what the guest adds, and the coarse time of day, it is right within 10 ms. */
const CLOCK_ERROR_MS_MAX = 8;
/** Where all processors are busy, one of these is answered soon enough. */
const NARROWING_LOOKS_MAX = 20;
const HELD_FRAMES_MAX = 4096;
const HELD_BYTES_MAX = 16 * MESSAGE_BYTES_MAX;
/** Answers that the guest has not read yet; several of the largest. */
const UNREAD_BYTES_MAX = 4 * MESSAGE_BYTES_MAX;
/** Small ones cost more than their bytes. */
const UNREAD_FRAMES_MAX = 4096;
/** Of the guest's words about its own failures. */
const GUEST_WORDS_LENGTH_MAX = 500;

/**
 * Behind a RESUME and its responses, from an agent that has taken over a running guest: its programs'
 * requests come again. `owner`: a program whose end must be known of.
 */
export function encodeAgain(owner: number | undefined): Buffer {
  const fields: Record<string, number> = owner === undefined ? {} : { owner };
  return encodeFrame(FrameType.again, 0, encodeLines(fields));
}

type Answer = { readonly result: unknown } | { readonly error: SnowforkError };

/** A RESPONSE frame (or several). */
export function encodeResponse(request: PendingRequest, answer: Answer): Buffer {
  const body = 'error' in answer ? { error: answer.error.toJSON() } : answer;
  const payload = encodeValue({ id: request.id, ...body }, MESSAGE_BYTES_MAX);
  return encodeMessage(FrameType.response, request.stream, payload);
}

/** The answer, or why it cannot be told: some of it may be a guest's own words, of any size. */
function encodeFitting(request: PendingRequest, answer: Answer): Buffer {
  try {
    return encodeResponse(request, answer);
  } catch (cause) {
    const error = new SnowforkError('SF_VALUE_TOO_LARGE', 'the answer is too large', { cause });
    return encodeResponse(request, { error });
  }
}

function encodeResume(facts: ResumeFacts, originMs: number | undefined): Buffer {
  const { fork, role, id, hostname } = facts;
  const time = nanoseconds(Date.now());
  const origin = originMs === undefined ? {} : { origin: nanoseconds(originMs) };
  const entropy = facts.entropy.toString('hex');
  const fields = { fork, role, id, time, ...origin, entropy, hostname };
  return encodeFrame(FrameType.resume, 0, encodeLines(fields));
}

function requestKey(request: PendingRequest): string {
  return `${request.stream}:${request.id}`;
}

function decodeOrUndefined(message: Buffer): unknown {
  try {
    return decodeValue(message, MESSAGE_BYTES_MAX);
  } catch {
    return undefined;
  }
}
