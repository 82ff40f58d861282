"""A parallel map whose workers are clones of this VM; built upon the calls of the module alone.

    item    0 1 2 3 4 5 6 7        clone k of m takes the items k-1, k-1+m, k-1+2m, ...
    clone   1 2 3 1 2 3 1 2        and exits with one outcome for each

An outcome is the value, packed, or a dict that says what was raised.
"""

import builtins

import snowfork

from . import _identity
from ._errors import SnowforkError
from ._values import decode, encode


def map_in_clones(function, items, clones):
    items = list(items)
    snowfork._clone_count(clones)
    if not items:
        return []
    me, ticket = snowfork.fork(min(clones, len(items)))
    if me > 0:
        _exit_with(function, items[me - 1 :: ticket.clones])
    # No room for even one clone.
    outcomes = _run(function, items) if ticket.clones == 0 else _gather(len(items), ticket)
    return [_unpack(outcome) for outcome in outcomes]


def _run(function, items):
    outcomes = []
    for item in items:
        try:
            outcomes.append(encode(function(item)))
        except Exception as error:
            outcomes.append(_carry(error))
    return outcomes


def _exit_with(function, items):
    """Runs in the clone, and must not return: what comes next is the parent's to do."""
    try:
        outcomes = _run(function, items)
        try:
            snowfork.exit(outcomes)
        except SnowforkError as error:
            # All together they are too large: then it is each one's fault.
            snowfork.exit([_carry(error)] * len(outcomes))
    except BaseException:
        _identity.give_up("it could not hand over its results")


def _gather(count, ticket):
    try:
        results = snowfork.join(ticket)
    except BaseException:
        # Without the one who wants their results the clones have no purpose.
        snowfork.kill(ticket)
        raise
    gathered = [None] * count
    missing, reasons = [], []
    for result in results:
        places = range(result.id - 1, count, ticket.clones)
        if isinstance(result.value, list) and len(result.value) == len(places):
            for place, outcome in zip(places, result.value):
                gathered[place] = outcome
            continue
        missing.extend(places)
        reasons.append(str(result.error or f"clone {result.id} exited before its work was done"))
    if missing:
        missing.sort()
        text = f"there is no result for the items {missing}: {'; '.join(reasons)}"
        raise SnowforkError("SF_VM_GONE", text, {"items": missing, "reasons": reasons})
    return gathered


def _carry(error):
    import traceback

    # Not `raise … from`: what stood before it is in the stack.
    carried = {"name": type(error).__name__, "stack": traceback.format_exc()}
    if isinstance(error, SnowforkError):
        return {**carried, "code": error.code, "message": error.message}
    try:
        # A KeyError's text is not what it was made of.
        encode(error.args)
        return {**carried, "message": str(error), "args": list(error.args)}
    except SnowforkError:
        return {**carried, "message": str(error)}


def _unpack(outcome):
    """The value, or raises what was raised; a clone is not believed more than that."""
    if isinstance(outcome, bytes):
        return decode(outcome)
    if not isinstance(outcome, dict):
        raise SnowforkError("SF_VM_GONE", f"a clone handed over what is no result: {outcome!r}")
    error = _raised(outcome)
    if hasattr(error, "add_note"):
        error.add_note(f"in a clone:\n{outcome.get('stack')}")
    raise error


def _raised(outcome):
    name, message = str(outcome.get("name")), str(outcome.get("message"))
    if "code" in outcome:
        return SnowforkError(str(outcome["code"]), message)
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and "args" in outcome:
        try:
            return kind(*outcome["args"])
        except TypeError:
            pass
    return RuntimeError(f"{name}: {message}")
