// What an image is made of, as its declared file says it (`images/<name>.yaml`): reads the file,
// checks every key, resolves paths and units. Never builds anything; called by the agent and by
// the tests.

import fs from 'node:fs/promises';
import path from 'node:path';
import { SnowforkError } from '@snowfork/sdk/api';
import { LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';

const MiB = 1024 * 1024;
const DECLARED_BYTES_MAX = 1 * MiB;
export const MEMORY_BYTES_MIN = 64 * MiB;
export const MEMORY_BYTES_MAX = 1024 * 1024 * MiB;
export const VCPUS_MAX = 64;
const LIST_ITEMS_MAX = 1024;
const TEXT_CHARACTERS_MAX = 65_536;
const MODE_DEFAULT = '0644';
const MEMORY_HELP = 'an amount of memory such as `256M` or `2G`, from 64M to 1024G';
const VCPUS_HELP = `a whole number from 1 to ${VCPUS_MAX}`;

/** What is put into the root file system: a file or folder of the host's, or a text. */
export type ImageFile =
  | { readonly target: string; readonly source: string; readonly mode?: number }
  | { readonly target: string; readonly text: string; readonly mode: number };

export interface ImageSpec {
  /** The declared file's name without `.yaml`. */
  readonly name: string;
  readonly description: string;
  /** The Debian suite: `bookworm`. */
  readonly base: string;
  /** busybox: an applet for each command and nothing that Debian needs to manage itself. */
  readonly system: 'busybox' | 'debian';
  readonly packages: readonly string[];
  readonly files: readonly ImageFile[];
  /** Shell commands, run in the root file system when it is built. */
  readonly commands: readonly string[];
  /** Shell commands, run once in the booted guest before it is frozen. */
  readonly warm: readonly string[];
  readonly memoryBytes: number;
  readonly vcpus: number;
  /** QEMU's name of a CPU model, where the image needs a certain one. */
  readonly cpu: string | undefined;
  /** Undefined: the one that the agent's settings say, or Debian's cloud kernel of `base`. */
  readonly kernel: KernelChoice | undefined;
}

/** A package of a suite that need not be the image's: kernels from backports. */
export interface KernelChoice {
  readonly package: string;
  readonly suite: string;
}

const text = z.string().max(TEXT_CHARACTERS_MAX);
const command = text.min(1, { error: 'a command is a line of shell, not empty' });
const KERNEL_HELP =
  'a package and its suite, as apt writes them: `linux-image-cloud-amd64/bookworm-backports`';
/** Also of the agent's setting. */
export const kernelSchema = z
  .string({ error: KERNEL_HELP })
  .regex(/^linux-image-[a-z0-9.+-]+\/[a-z][a-z0-9-]{0,31}$/, { error: KERNEL_HELP })
  .transform((text): KernelChoice => {
    const [name, suite] = text.split('/') as [string, string];
    return { package: name, suite };
  });
const packageName = z.string().regex(/^[a-z0-9][a-z0-9+.-]*(:[a-z0-9]+)?$/, {
  error: 'a name of a Debian package has a-z 0-9 + . - only, such as `iproute2`',
});
const target = z
  .string()
  .max(1024)
  .regex(/^(\/[^/\0]+)+$/, { error: 'an absolute path in the guest, such as `/opt/job.mjs`' })
  .refine((value) => !value.split('/').some((step) => step === '.' || step === '..'), {
    error: 'a path without `.` and `..`',
  });
const mode = z.string({ error: "permissions in quotes, such as '0755'" }).regex(/^0?[0-7]{3,4}$/, {
  error: "permissions are three or four octal digits in quotes, such as '0755'",
});
const fileSchema = z
  .strictObject({
    source: text.min(1).optional(),
    text: text.optional(),
    target,
    mode: mode.optional(),
  })
  .refine((file) => (file.source === undefined) !== (file.text === undefined), {
    error: 'exactly one of `source` (a path, relative to this file) and `text`',
  });

const declaredSchema = z.strictObject({
  description: text.default(''),
  base: z
    .string()
    .regex(/^[a-z][a-z0-9-]{0,31}$/, {
      error: 'the code name of a Debian suite, such as `bookworm`',
    })
    .default('bookworm'),
  system: z.enum(['busybox', 'debian'], { error: '`busybox` or `debian`' }).default('debian'),
  packages: z.array(packageName).max(LIST_ITEMS_MAX).default([]),
  files: z.array(fileSchema).max(LIST_ITEMS_MAX).default([]),
  commands: z.array(command).max(LIST_ITEMS_MAX).default([]),
  warm: z.array(command).max(LIST_ITEMS_MAX).default([]),
  memory: z.string({ error: MEMORY_HELP }).default('256M'),
  vcpus: z
    .number({ error: VCPUS_HELP })
    .int({ error: VCPUS_HELP })
    .min(1, { error: VCPUS_HELP })
    .max(VCPUS_MAX, { error: VCPUS_HELP })
    .default(1),
  cpu: z
    .string()
    .regex(/^[A-Za-z0-9][A-Za-z0-9._,+=-]{0,255}$/, {
      error: 'a CPU model as QEMU names it, such as `Nehalem` or `Nehalem,+aes`',
    })
    .optional(),
  kernel: kernelSchema.optional(),
});
type Declared = z.infer<typeof declaredSchema>;
const KEYS = Object.keys(declaredSchema.shape).join(', ');

/**
 * @param memory instead of the file's: `512M`
 * @throws SnowforkError SF_BAD_REQUEST that names the file, the key and what is accepted.
 */
export async function parseImageFile(file: string, memory?: string): Promise<ImageSpec> {
  const declared = checkDeclared(file, parseYaml(file, await readDeclared(file)));
  const files = declared.files.map((entry): ImageFile => {
    const mode = Number.parseInt(entry.mode ?? MODE_DEFAULT, 8);
    if (entry.text !== undefined) return { target: entry.target, text: entry.text, mode };
    const source = path.resolve(path.dirname(file), entry.source!);
    return { target: entry.target, source, ...(entry.mode === undefined ? {} : { mode }) };
  });
  await assertSources(file, files);
  const { description, base, system, packages, commands, warm, vcpus } = declared;
  const { cpu, kernel } = declared;
  return {
    name: path.basename(file).replace(/\.ya?ml$/, ''),
    ...{ description, base, system, packages, files, commands, warm, vcpus },
    ...{ cpu, kernel },
    memoryBytes:
      memory === undefined
        ? parseMemoryAt(declared.memory, `${file}: memory`)
        : parseMemory(memory),
  };
}

/** Bytes of `256M` or `2G`. @throws SnowforkError SF_BAD_REQUEST that says what is accepted. */
export function parseMemory(memory: string): number {
  return parseMemoryAt(memory, 'memory');
}

/** Whether the guest SDK belongs into the image. */
export function hasNode(spec: ImageSpec): boolean {
  return spec.packages.includes('nodejs');
}

/** Whether the guest's Python module belongs into the image. */
export function hasPython(spec: ImageSpec): boolean {
  return spec.packages.includes('python3');
}

function parseMemoryAt(memory: string, where: string): number {
  const match = /^([0-9]{1,7})([MG])$/.exec(memory);
  const bytes = match === null ? 0 : Number(match[1]) * (match[2] === 'G' ? 1024 * MiB : MiB);
  if (bytes < MEMORY_BYTES_MIN || bytes > MEMORY_BYTES_MAX) {
    throw badRequest(`${where}: ${JSON.stringify(memory)} is not ${MEMORY_HELP}`);
  }
  return bytes;
}

async function readDeclared(file: string): Promise<string> {
  try {
    const { size } = await fs.stat(file);
    if (size > DECLARED_BYTES_MAX) throw new Error(`it is larger than ${DECLARED_BYTES_MAX} bytes`);
    return await fs.readFile(file, 'utf8');
  } catch (cause) {
    throw badRequest(`${file} can't be read: ${(cause as Error).message}`, cause);
  }
}

function parseYaml(file: string, source: string): unknown {
  const lines = new LineCounter();
  const document = parseDocument(source, { lineCounter: lines, prettyErrors: false });
  const [error] = document.errors;
  if (error !== undefined) {
    const { line, col } = lines.linePos(error.pos[0]);
    throw badRequest(`${file}:${line}:${col}: no YAML: ${error.message}`, error);
  }
  try {
    // An empty file is an image too: Debian as it is.
    return document.toJS() ?? {};
  } catch (cause) {
    throw badRequest(`${file}: no YAML: ${(cause as Error).message}`, cause);
  }
}

function checkDeclared(file: string, declared: unknown): Declared {
  const parsed = declaredSchema.safeParse(declared);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map((issue) => {
    const where = issue.path.length === 0 ? '' : `${formatPath(issue.path)}: `;
    if (issue.code !== 'unrecognized_keys') return `${where}${issue.message}`;
    const known = issue.path.length === 0 ? KEYS : Object.keys(fileSchema.shape).join(', ');
    return `${where}unknown key ${issue.keys.join(', ')}; known are ${known}`;
  });
  throw badRequest(problems.map((problem) => `${file}: ${problem}`).join('\n'));
}

function formatPath(steps: readonly PropertyKey[]): string {
  return steps
    .map((step) => (typeof step === 'number' ? `[${step}]` : `.${String(step)}`))
    .join('')
    .replace(/^\./, '');
}

async function assertSources(file: string, files: readonly ImageFile[]): Promise<void> {
  for (const [index, entry] of files.entries()) {
    if (!('source' in entry)) continue;
    const found = await fs.stat(entry.source).catch(() => undefined);
    const where = `${file}: files[${index}]`;
    if (found === undefined) throw badRequest(`${where}.source: ${entry.source} is not there`);
    if (found.isDirectory()) {
      if (entry.mode !== undefined)
        throw badRequest(`${where}.mode: a folder's files keep their own`);
    } else if (!found.isFile()) {
      throw badRequest(`${where}.source: ${entry.source} is neither a file nor a folder`);
    }
  }
}

function badRequest(message: string, cause?: unknown): SnowforkError {
  return new SnowforkError('SF_BAD_REQUEST', message, { cause });
}
