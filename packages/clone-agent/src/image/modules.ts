// Which kernel modules must be loaded, and in which order: reads what depmod wrote. Touches no
// file; called by `initramfs.ts`.

/** A path below `lib/modules/<release>`: `kernel/fs/squashfs/squashfs.ko`. */
export type ModulePath = string;

export interface ModuleOrder {
  /** Each after those that it depends on. */
  readonly load: readonly ModulePath[];
  /** Wanted, but neither a module nor built into the kernel. */
  readonly missing: readonly string[];
}

/**
 * @param wanted names of modules: `virtio_blk`
 * @param dependencies the text of `modules.dep`
 * @param builtin the text of `modules.builtin`
 */
export function orderModules(
  wanted: readonly string[],
  dependencies: string,
  builtin: string,
): ModuleOrder {
  const needs = new Map<ModulePath, readonly ModulePath[]>();
  const pathOf = new Map<string, ModulePath>();
  for (const line of dependencies.split('\n')) {
    const at = line.indexOf(':');
    if (at <= 0) continue;
    const module = line.slice(0, at);
    needs.set(
      module,
      line
        .slice(at + 1)
        .split(' ')
        .filter(Boolean),
    );
    pathOf.set(moduleName(module), module);
  }
  const inKernel = new Set(builtin.split('\n').filter(Boolean).map(moduleName));
  const load = new Set<ModulePath>();
  const missing: string[] = [];
  for (const name of wanted) {
    const module = pathOf.get(name);
    if (module === undefined) {
      if (!inKernel.has(name)) missing.push(name);
      continue;
    }
    // depmod lists all that a module needs, also indirectly, the first to be loaded last.
    for (const need of [...(needs.get(module) ?? [])].reverse()) load.add(need);
    load.add(module);
  }
  return { load: [...load], missing };
}

/** `virtio_blk` of `kernel/drivers/block/virtio-blk.ko.xz`: the kernel takes `-` for `_`. */
export function moduleName(module: ModulePath): string {
  const file = module.slice(module.lastIndexOf('/') + 1);
  return file.replace(/\.ko(\.(xz|zst|gz))?$/, '').replaceAll('-', '_');
}
