// `sf console` and `sf logs`. Called by `program.ts`.

import { StringDecoder } from 'node:string_decoder';
import type { ConsoleSession } from '../../host/console.js';
import type { CommandSpec } from '../command.js';
import type { Output } from '../output.js';

/** Ctrl-], as in telnet and virsh. */
const ESCAPE_BYTE = 0x1d;

const console_: CommandSpec = {
  syntax: 'console <vm>',
  summary: "a VM's serial console: what it wrote lately, then live",
  details:
    'On a terminal every key goes to the guest; Ctrl-] leaves. Ends when the VM ends. With ' +
    '--json only the output, as lines of { output }.',
  examples: [
    { line: 'sf console 7f3a', says: 'Ctrl-] leaves' },
    { line: 'sf console 7f3a < /dev/null | tee log', says: 'only watch' },
  ],
  async run({ output, interrupts, connect }, [id = '']) {
    const { signal } = interrupts;
    const vm = await (await connect()).vm(id, { signal });
    const session = await vm.console({ signal });
    const release = output.json ? () => {} : typeInto(session, output);
    try {
      await print(session.output, output);
    } finally {
      release();
      session.close();
    }
  },
};

const logs: CommandSpec = {
  syntax: 'logs <vm>',
  summary: 'output of commands that a VM inherited from its parent, and words of its guest side',
  options: [{ flags: '-f, --follow', summary: 'go on until the VM ends' }],
  examples: [
    { line: 'sf logs 7f3a', says: 'what is there' },
    { line: 'sf logs 7f3a -f --json', says: 'lines of { output }, as they come' },
  ],
  async run({ output, interrupts, connect }, [id = ''], { follow }) {
    const { signal } = interrupts;
    const vm = await (await connect()).vm(id, { signal });
    await print(vm.logs({ follow: follow === true, signal }), output);
  },
};

export const consoleCommands = [console_, logs] as const;

async function print(chunks: AsyncIterable<Buffer>, output: Output): Promise<void> {
  // A character may be cut in two by chunks; JSON needs whole ones.
  const decoder = new StringDecoder('utf8');
  for await (const chunk of chunks) {
    if (!output.json) await output.bytes(chunk);
    else output.document({ output: decoder.write(chunk) });
  }
}

/** Sends what is typed; returns what gives the terminal back. */
function typeInto(session: ConsoleSession, output: Output): () => void {
  const { stdin } = process;
  const onData = (chunk: Buffer) => {
    const escapeAt = stdin.isTTY ? chunk.indexOf(ESCAPE_BYTE) : -1;
    const typed = escapeAt === -1 ? chunk : chunk.subarray(0, escapeAt);
    // If the VM has just ended, the output says so.
    if (typed.length > 0) queue = queue.then(() => session.write(typed)).catch(() => {});
    // What was typed before it still goes to the guest.
    if (escapeAt !== -1) queue = queue.then(() => session.close());
  };
  let queue = Promise.resolve();
  if (stdin.isTTY) {
    stdin.setRawMode(true);
    output.note('connected; Ctrl-] leaves\r');
  }
  stdin.on('data', onData);
  return () => {
    stdin.off('data', onData);
    if (stdin.isTTY) {
      stdin.setRawMode(false);
      output.note('');
    }
    stdin.destroy();
  };
}
