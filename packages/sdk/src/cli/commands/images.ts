// `sf image …`. Called by `program.ts`.

import { existsSync, readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SnowforkError } from '../../api/errors.js';
import { type BuildProgress, imageNameSchema } from '../../api/schemas.js';
import type { CommandSpec, GroupSpec } from '../command.js';
import { formatBytes, formatDuration } from '../format.js';
import type { Output } from '../output.js';

const PROJECT_IMAGES = fileURLToPath(new URL('../../../../../images', import.meta.url));

const build: CommandSpec = {
  syntax: 'build <name>',
  summary: 'build an image, boot it once and keep its snapshot',
  details:
    'Reads <name>.yaml in ./images or in the images of the project. Nothing is done when the ' +
    'image is built and its file unchanged. An interrupted build leaves nothing.',
  options: [
    { flags: '--file <path>', summary: "the image's file" },
    { flags: '--memory <size>', summary: 'RAM, such as 512M, in place of what the file says' },
    { flags: '--force', summary: 'build even when nothing changed' },
  ],
  examples: [
    { line: 'sf image build minimal', says: 'the small image' },
    { line: 'sf image build mine --file ./mine.yaml', says: 'one of your own' },
    { line: 'sf image build node --memory 1G --json', says: 'progress as JSON lines' },
  ],
  exits: [{ code: '9', when: 'the build failed; the message names the step' }],
  async run(session, [name = ''], options) {
    const { output, interrupts } = session;
    const request = {
      name,
      file: imageFile(name, options.file as string | undefined),
      memory: options.memory as string | undefined,
      force: options.force as boolean | undefined,
    };
    const progress = new ProgressPrinter(output);
    const host = await session.connect();
    const onProgress = (step: BuildProgress) => progress.show(step);
    try {
      const { signal } = interrupts;
      const result = await host.buildImage(request, { onProgress, signal });
      progress.end();
      const { image, unchanged } = result;
      if (output.json) output.document({ event: 'done', ...result });
      const words = unchanged ? 'is built already, nothing changed' : 'is built';
      output.line(
        `image ${name} ${words}: snapshot ${image.snapshot}, ${formatBytes(image.storedBytes)}`,
      );
    } finally {
      progress.end();
    }
  },
};

const list: CommandSpec = {
  syntax: 'ls',
  summary: 'list the images of this host',
  examples: [{ line: 'sf image ls', says: 'names, sizes and machines' }],
  async run({ output, interrupts, connect }) {
    const images = await (await connect()).images({ signal: interrupts.signal });
    if (output.json) return output.document({ images });
    output.table(
      ['NAME', 'SNAPSHOT', 'MEMORY', 'VCPUS', 'KERNEL', 'STORED', 'AGE'],
      images.map((image) => [
        image.name,
        image.snapshot,
        formatBytes(image.machine.memoryBytes),
        String(image.machine.vcpus),
        image.kernel,
        formatBytes(image.storedBytes),
        formatDuration(Date.now() - image.builtAt),
      ]),
    );
  },
};

const remove: CommandSpec = {
  syntax: 'rm <image...>',
  summary: 'delete images',
  examples: [{ line: 'sf image rm minimal', says: 'delete one; VMs of it must have ended' }],
  exits: [{ code: '5', when: 'VMs still need it; the message names them' }],
  async run({ output, connect }, names) {
    const host = await connect();
    for (const name of names) {
      await host.removeImage(name);
      output.line(name);
    }
    if (output.json) output.document({ removed: names });
  },
};

export const imageGroup: GroupSpec = {
  name: 'image',
  summary: 'build, list and delete images',
  commands: [build, list, remove],
};

/** Names of the images that `sf image build` would find a file for. */
export function describedImages(): string[] {
  const files = [resolve('images'), PROJECT_IMAGES].flatMap((folder) =>
    existsSync(folder) ? readdirSync(folder) : [],
  );
  const names = files.flatMap((file) => (file.endsWith('.yaml') ? [file.slice(0, -5)] : []));
  return [...new Set(names)].sort();
}

function imageFile(name: string, file: string | undefined): string {
  if (file !== undefined) return assertThere(resolve(file), [resolve(file)]);
  const parsed = imageNameSchema.safeParse(name);
  if (!parsed.success) {
    throw new SnowforkError('SF_BAD_REQUEST', parsed.error.issues[0]?.message ?? 'bad name');
  }
  const places = [resolve('images'), PROJECT_IMAGES].map((folder) =>
    resolve(folder, `${name}.yaml`),
  );
  return assertThere(
    places.find((place) => existsSync(place)),
    places,
  );
}

function assertThere(file: string | undefined, looked: readonly string[]): string {
  if (file !== undefined && existsSync(file)) return file;
  const message = `no file describes this image; looked at ${[...new Set(looked)].join(' and ')}`;
  throw new SnowforkError('SF_BAD_REQUEST', message);
}

/** On a terminal a line per step, drawn in place; elsewhere plain lines; or JSON lines. */
class ProgressPrinter {
  readonly #output: Output;
  #step: string | undefined;

  constructor(output: Output) {
    this.#output = output;
  }

  show(progress: BuildProgress): void {
    if (this.#output.json) {
      this.#output.document({ event: 'progress', ...progress });
      return;
    }
    const time = `[${(progress.elapsedMs / 1000).toFixed(1).padStart(6)} s]`;
    const text = `${time} ${progress.step}: ${progress.message}`;
    if (!this.#output.isTerminal) {
      this.#output.note(text);
      return;
    }
    if (this.#step !== undefined && this.#step !== progress.step) this.#output.endInPlace();
    this.#step = progress.step;
    this.#output.inPlace(text.replaceAll(/[\r\n]+/g, ' '));
  }

  end(): void {
    if (this.#step !== undefined) this.#output.endInPlace();
    this.#step = undefined;
  }
}
