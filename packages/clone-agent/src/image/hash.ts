// What an image was built from, as one hash: equal hashes mean that building again would change
// nothing but the versions of packages. Called by the agent before it builds.

import { createHash, type Hash } from 'node:crypto';
import fs from 'node:fs/promises';
import path from 'node:path';
import { findGuestPython } from './guest-python.js';
import { findGuestSdk } from './guest-sdk.js';
import { GUEST_FILES } from './root.js';
import { hasNode, hasPython, type ImageSpec } from './spec.js';

/** Raised when the builder itself makes something else of the same declared file. */
const BUILDER_VERSION = 2;

/** @throws SnowforkError SF_IMAGE_BUILD_FAILED when the guest SDK is needed and not compiled. */
export async function hashImage(
  spec: ImageSpec,
  folders: { readonly guestFolder: string; readonly sdkFolder: string },
): Promise<string> {
  const hash = createHash('sha256');
  // Paths of sources are left out: the same files in another checkout are the same image.
  const files = spec.files.map((file) => ({ ...file, source: undefined }));
  addText(hash, JSON.stringify({ builder: BUILDER_VERSION, ...spec, description: '', files }));
  for (const file of spec.files) {
    if ('source' in file) await addTree(hash, file.target, file.source);
  }
  for (const name of [...Object.keys(GUEST_FILES), 'init-initramfs'].sort()) {
    await addTree(hash, name, path.join(folders.guestFolder, name));
  }
  if (hasPython(spec)) {
    for (const file of await findGuestPython(folders.guestFolder)) {
      await addTree(hash, file, path.join(folders.guestFolder, file));
    }
  }
  if (hasNode(spec)) {
    const sdk = await findGuestSdk(folders.sdkFolder, { step: 'guest' });
    for (const file of sdk.files) await addTree(hash, file, path.join(sdk.sdkFolder, file));
    for (const [name, folder] of sdk.packages) {
      await addTree(hash, name, path.join(folder, 'package.json'));
    }
  }
  return hash.digest('hex');
}

/** A file, or a folder with all in it; `name` stands for its path. */
async function addTree(hash: Hash, name: string, source: string): Promise<void> {
  const found = await fs.lstat(source);
  addText(hash, name);
  addText(hash, (found.mode & 0o170111).toString(8));
  if (found.isSymbolicLink()) return addText(hash, await fs.readlink(source));
  if (!found.isDirectory()) return addText(hash, await fs.readFile(source));
  for (const entry of (await fs.readdir(source)).sort()) {
    await addTree(hash, `${name}/${entry}`, path.join(source, entry));
  }
}

/** Its length goes before it, so that no two lists of texts give the same bytes. */
function addText(hash: Hash, text: string | Buffer): void {
  hash.update(`${Buffer.byteLength(text)}:`);
  hash.update(text);
}
