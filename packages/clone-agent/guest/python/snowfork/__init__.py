"""Forks the virtual machine that this program runs in: `fork` for a whole Linux VM.

    import snowfork as sf

    me, ticket = sf.fork(4)
    if me > 0:
        sf.exit(work(me))                  # in clone 1 ... 4, each with all that the parent had
    for clone in sf.join(ticket):          # in the parent, which went on
        print(clone.id, clone.value)

Each call is one question to the agent of the host (`join`: a few), and blocks until it is answered;
threads may call at the same time. Values are what MessagePack has a word for: None, bool, int of 64
bits, float, str, bytes, datetime with a time zone, list, dict (a tuple arrives as a list).

When a call that forks returns, here and in the clones, the clock is right and random generators are
renewed: the kernel's, `random`, NumPy's global one, OpenSSL's in this process; and the functions of
`on_fork` have run. Needs Python 3.9 and nothing beside it. This file has the calls, `_map` is built
upon them; `_port` brings questions to the agent, `_values` packs, `_identity` renews.
"""

# Modules that are slow to import (typing, dataclasses, logging) are left alone: a guest without KVM
# takes its time.

import collections
import time

from . import _identity, _port
from ._errors import SnowforkError
from ._identity import Notice
from ._values import VALUE_BYTES_MAX, decode, encode

__all__ = [
    "Checkpoint", "Fork", "Info", "Notice", "Result", "SnowforkError", "Ticket", "VALUE_BYTES_MAX",
    "checkpoint", "clone", "create_clones", "exit", "fork", "id", "info", "join", "kill", "map",
    "on_fork", "request_ticket",
]

_CLONES_MAX = 256

Ticket = collections.namedtuple("Ticket", "id asked clones reason")
Ticket.__doc__ = "Room for `clones` of the clones `asked` for; `reason` says why fewer, or is None."
Fork = collections.namedtuple("Fork", "id ticket")
Fork.__doc__ = "What `fork` returns: `id` 0 in the parent, 1, 2 ... in clones; the ticket to join."
Checkpoint = collections.namedtuple("Checkpoint", "checkpoint id restored")
Checkpoint.__doc__ = "A kept state. `restored`: this is a clone made of it, with its `id`."
Info = collections.namedtuple("Info", "vm id family parent")
Info.__doc__ = "Which VM this is: name, id within its ticket, family, parent (or None)."


class Result(collections.namedtuple("Result", "id value error")):
    """What became of a clone: the `value` that it handed to `exit`, or a SnowforkError."""

    __slots__ = ()

    def get(self):
        """The value. Raises the error of a clone that has none."""
        if self.error is not None:
            raise self.error
        return self.value


def fork(clones, hosts=None, place=None):
    """Forks this VM: one call, and it returns in the parent and in each clone.

    In a cluster clones run only on `hosts` (a list of names), if that is given; `place` is
    "spread" (as evenly as there is room) or "pack" (on as few hosts as possible).

    There may be fewer clones than asked for (1 to 256): `ticket.reason` says why. A clone belongs
    to the program that forked: if that ends without `exit`, the clone is lost.

    Raises SnowforkError: SF_BAD_REQUEST, SF_NO_ROOM, SF_LAYERS_FULL, SF_IDENTITY_FAILED,
    SF_AGENT_UNREACHABLE.
    """
    answer = _forking("fork", _wanted(clones, hosts, place))
    return Fork(answer["id"], _ticket(answer["ticket"]))


def request_ticket(clones, hosts=None, place=None):
    """Asks for room for clones, without forking yet; `hosts` and `place` as in `fork`."""
    return _ticket(_port.ask("requestTicket", _wanted(clones, hosts, place)))


def _wanted(clones, hosts, place):
    wanted = {"clones": _clone_count(clones)}
    if hosts is not None:
        wanted["hosts"] = list(hosts)
    if place is not None:
        wanted["place"] = place
    return wanted


def clone(ticket):
    """Forks this VM into the clones of a ticket; returns 0 in the parent, the id in a clone."""
    return _forking("clone", {"ticket": _name(ticket)})["id"]


def checkpoint():
    """Keeps this VM as it is now, to be cloned later; returns here and in all clones made of it."""
    answer = _forking("checkpoint", {})
    return Checkpoint(answer["checkpoint"], answer["id"], answer["restored"])


def create_clones(kept, ticket):
    """Starts the clones of a ticket from a checkpoint; they go on where `checkpoint` was called."""
    params = {"checkpoint": _name(kept), "ticket": _name(ticket)}
    return _ticket(_port.ask("createClones", params))


def exit(value=None):
    """Ends this VM, at once and whole, and hands `value` to whoever joins. Never returns.

    Raises SnowforkError, and the VM goes on, when the value can't travel (SF_BAD_REQUEST,
    SF_VALUE_TOO_LARGE) or nobody answers.
    """
    _port.ask("exit", {"value": encode(value)})
    # The agent has it, and ends this VM.
    while True:
        time.sleep(1)


def join(ticket, timeout=None):
    """Waits for the clones of a ticket, and returns a list of a Result for each, by their ids.

    After `timeout` seconds those that still run have the error SF_TIMEOUT; they go on.
    """
    name = _name(ticket)
    params = {"ticket": name}
    if timeout is not None:
        params["timeoutMs"] = _milliseconds(timeout)
    return [_result(name, slot, timeout) for slot in _port.ask("join", params)["slots"]]


def kill(ticket):
    """Ends the clones of a ticket; their results are lost."""
    _port.ask("kill", {"ticket": _name(ticket)})


def info():
    """Which VM is this?"""
    answer = _port.ask("info", {})
    return Info(answer["vm"], answer["id"], answer["family"], answer.get("parent"))


def id():
    """This VM's id within its ticket; 0 for one that is nobody's clone."""
    return info().id


def on_fork(function):
    """Registers what this program has to renew after a fork, as its seeds, tokens and connections.

    Functions are called with a Notice, in the order of their registration, in the parent and in
    each clone, whoever asked for the fork, and before a call that forks returns; when another
    program forked, in a thread of this module's. A clone in which one fails is lost; in the parent
    the call that forks raises SF_IDENTITY_FAILED. Returns the function, for use as a decorator.
    """
    _identity.add_hook(function)
    _port.watch()
    return function


def map(function, items, clones):
    """Calls `function` with each item, in clones of this VM; returns the results in their order.

    Functions and what they use need no packing, as the whole memory is cloned; only results travel.
    Raises what the function raised first, in the order of the items (its own type where that is
    built in, else RuntimeError), or SF_VM_GONE for items of lost clones.
    """
    from ._map import map_in_clones

    return map_in_clones(function, items, clones)


def _forking(method, params):
    """A call after which there are copies of this process."""
    with _identity.Renewal() as renewal:
        answer = _port.ask(method, params)
        renewal.finish(answer["id"])
    return answer


def _result(ticket, slot, timeout):
    me, status = slot["cloneId"], slot["status"]
    details = {"ticket": ticket, "cloneId": me}
    if status == "running":
        text = f"clone {me} still runs after {timeout} s"
        return Result(me, None, SnowforkError("SF_TIMEOUT", text, details))
    if status == "lost":
        text = f"clone {me} was lost: {slot.get('reason', 'no reason is known')}"
        return Result(me, None, SnowforkError("SF_VM_GONE", text, details))
    try:
        return Result(me, decode(_port.ask("result", {"ticket": ticket, "cloneId": me})), None)
    except SnowforkError as error:
        # What concerns the way to the agent concerns all; the rest concerns this clone's value.
        if error.code == "SF_AGENT_UNREACHABLE":
            raise
        return Result(me, None, error)


def _ticket(answer):
    return Ticket(answer["id"], answer["asked"], answer["clones"], answer.get("reason"))


def _name(given):
    """Of a ticket or a checkpoint: given by its name, or as what `fork` and others returned."""
    if isinstance(given, Fork):
        given = given.ticket
    name = given.checkpoint if isinstance(given, Checkpoint) else getattr(given, "id", given)
    if isinstance(name, str):
        return name
    raise SnowforkError("SF_BAD_REQUEST", f"a ticket or checkpoint is asked for, not {given!r}")


def _clone_count(count):
    if isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= _CLONES_MAX:
        return count
    text = f"the number of clones is a whole number from 1 to {_CLONES_MAX}, not {count!r}"
    raise SnowforkError("SF_BAD_REQUEST", text)


def _milliseconds(timeout):
    if isinstance(timeout, (int, float)) and 0 <= timeout < 2**31 / 1000:
        return int(timeout * 1000)
    raise SnowforkError("SF_BAD_REQUEST", f"a timeout is a number of seconds, not {timeout!r}")
