// What the service answers, as JSON: values of programs, which may hold what JSON cannot say, and
// errors. Called by the routes; the SDK has the inverse.

import {
  type End,
  type ForkResult,
  type Slot,
  SnowforkError,
  type VmInfo,
  valueToJson,
} from '@snowfork/sdk/api';

export function presentEnd(end: End): End {
  return end.how === 'exited' ? { ...end, value: valueToJson(end.value) } : end;
}

export function presentVm(vm: VmInfo): VmInfo {
  return vm.end === undefined ? vm : { ...vm, end: presentEnd(vm.end) };
}

export function presentSlot(slot: Slot): Slot {
  return slot.status === 'exited' ? { ...slot, value: valueToJson(slot.value) } : slot;
}

export function presentFork(result: ForkResult): ForkResult {
  const clones = result.clones.map((clone) =>
    clone.status === 'fulfilled'
      ? { ...clone, vm: presentVm(clone.vm) }
      : { ...clone, error: SnowforkError.from(clone.error).toJSON() },
  );
  return { ...result, clones };
}
