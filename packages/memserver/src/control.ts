// The control socket of a process that an agent has started: one JSON object a line,
// `{"execute","arguments","id"}`, answered by `{"return","id"}` or `{"error":{"desc"},"id"}`, as
// QEMU's monitor does it. Knows lines, not what the commands do. The pager and the memory server
// listen with it; the agent is the other end.

import fs from 'node:fs';
import net from 'node:net';
import { z } from 'zod';

/** What the process prints when its control socket listens. */
export const LISTENING_LINE = 'listening';
/** Of a command. Layers are named by their paths, and a snapshot may have hundreds. */
export const COMMAND_LINE_BYTES_MAX = 2 * 1024 * 1024;
export const CONTROL_CONNECTIONS_MAX = 16;

const commandSchema = z.object({
  execute: z.string(),
  arguments: z.record(z.string(), z.unknown()).optional(),
  id: z.union([z.number(), z.string()]).optional(),
});

/** Returns what goes into `return`; an error that it throws goes into `error`. */
export type Command = (args: Readonly<Record<string, unknown>>) => unknown;

/** Listens at `path`, in the place of whoever listened there before. */
export async function listenForCommands(
  path: string,
  commands: Readonly<Record<string, Command>>,
): Promise<net.Server> {
  fs.rmSync(path, { force: true });
  const server = net.createServer((socket) => serveConnection(socket, commands));
  server.maxConnections = CONTROL_CONNECTIONS_MAX;
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });
  fs.chmodSync(path, 0o600);
  return server;
}

function serveConnection(socket: net.Socket, commands: Readonly<Record<string, Command>>): void {
  let text = '';
  socket.setEncoding('utf8');
  socket.on('error', () => socket.destroy());
  socket.on('data', (chunk: string) => {
    const lines = (text + chunk).split('\n');
    text = lines.pop()!;
    if (
      text.length > COMMAND_LINE_BYTES_MAX ||
      lines.some((line) => line.length > COMMAND_LINE_BYTES_MAX)
    ) {
      socket.destroy();
      return;
    }
    for (const line of lines) if (line.trim() !== '') void answer(socket, line, commands);
  });
}

/** Never rejects. Commands of one connection may overtake each other; `id` tells them apart. */
async function answer(
  socket: net.Socket,
  line: string,
  commands: Readonly<Record<string, Command>>,
): Promise<void> {
  let id: string | number | undefined;
  let reply: object;
  try {
    const command = commandSchema.parse(JSON.parse(line));
    id = command.id;
    const run = Object.hasOwn(commands, command.execute) ? commands[command.execute] : undefined;
    if (run === undefined) throw new Error(`there is no command ${command.execute}`);
    reply = { return: (await run(command.arguments ?? {})) ?? {} };
  } catch (error) {
    reply = { error: { desc: error instanceof Error ? error.message : String(error) } };
  }
  if (!socket.destroyed) socket.write(`${JSON.stringify({ ...reply, id })}\n`);
}
