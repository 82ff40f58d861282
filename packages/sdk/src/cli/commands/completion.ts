// `sf completion`: prints the script that makes a shell complete `sf`. Called by `program.ts`.

import { SnowforkError } from '../../api/errors.js';
import type { CommandSpec } from '../command.js';
import { completionScripts, SHELLS, type Shell } from '../completion/scripts.js';

export const completion: CommandSpec = {
  syntax: 'completion <shell>',
  summary: 'print the script that makes bash, zsh or fish complete `sf`',
  details:
    'Commands, options, and the names of images, VMs, snapshots and tickets. Names are asked of ' +
    'the agent when it runs; completing never starts it.',
  examples: [
    { line: 'source <(sf completion bash)', says: 'for this shell; put it in ~/.bashrc' },
    { line: 'source <(sf completion zsh)', says: 'in ~/.zshrc, after compinit' },
    { line: 'sf completion fish | source', says: 'in ~/.config/fish/config.fish' },
  ],
  async run({ output }, [shell = '']) {
    if (!isShell(shell)) {
      throw new SnowforkError('SF_BAD_REQUEST', `there is a script for ${SHELLS.join(', ')}`);
    }
    const script = completionScripts[shell];
    if (output.json) output.document({ shell, script });
    else output.line(script.trimEnd());
  },
};

function isShell(name: string): name is Shell {
  return (SHELLS as readonly string[]).includes(name);
}
