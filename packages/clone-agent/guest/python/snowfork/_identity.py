"""What this process must not share with the copies of its VM: its random generators, and what the
functions of `on_fork` renew.

Renews once for each fork, in whichever thread hears of it first, and never asks the agent anything;
`_port` calls `take` when sf-guestd tells of a fork. In a clone that can't be renewed this process
ends, and the clone with it: nothing is handed out that has a twin.

    os.urandom, secrets, uuid4   the kernel's, which is renewed before any program goes on
    ssl                          OpenSSL's, one in each process: new entropy
    random                       its own generator, and each random.Random() without a seed
    numpy.random                 the global generator
"""

import collections
import os
import random
import sys
import threading
import weakref

from ._errors import SnowforkError

Notice = collections.namedtuple("Notice", "role id")
Notice.__doc__ = "Where an `on_fork` function runs: `role`, parent or clone; `id`, the clone's, 0."

_HOOKS_MAX = 1024

_hooks = []
_lock = threading.RLock()
_generation = 0
_failure = None
_callers = 0


def add_hook(function):
    if not callable(function):
        raise SnowforkError("SF_BAD_REQUEST", f"a function is asked for, not {function!r}")
    if len(_hooks) >= _HOOKS_MAX:
        raise SnowforkError("SF_BAD_REQUEST", f"at most {_HOOKS_MAX} functions")
    _hooks.append(function)


def take(notice, generation):
    """The VM was forked. Returns when all is renewed, also if another thread does it."""
    global _generation, _failure
    with _lock:
        if generation <= _generation:
            return
        _generation = generation
        _failure = None
        try:
            _renew_generators()
            for hook in list(_hooks):
                hook(notice)
        except BaseException as cause:
            if notice.role == "clone":
                give_up("what has to be its own was not renewed")
            text = f"after a fork: {type(cause).__name__}: {cause}"
            _failure = SnowforkError("SF_IDENTITY_FAILED", text)
            _failure.__cause__ = cause
            if _callers == 0:
                _say(str(_failure))


class Renewal:
    """Around a call that forks: when it is left, in parent and clones, all is renewed."""

    def __enter__(self):
        global _callers
        _reach_openssl()
        with _lock:
            _callers += 1
            self._before = _generation
        return self

    def finish(self, me):
        """`me`: as the call was answered. Raises SF_IDENTITY_FAILED, in the parent."""
        with _lock:
            if _generation == self._before:
                take(Notice("parent" if me == 0 else "clone", me), self._before + 1)
            if _failure is not None:
                raise _failure

    def __exit__(self, *_):
        global _callers
        with _lock:
            _callers -= 1


def give_up(reason):
    """Ends this process, and so the clone, which belongs to it."""
    try:
        import traceback

        _say(f"this clone is given up, {reason}:\n{traceback.format_exc()}")
    finally:
        os._exit(1)


def _say(text):
    """The program may have closed its standard error, or never had one."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"snowfork: {text}\n")
            sys.stderr.flush()
    except (OSError, ValueError):
        pass


def _renew_generators():
    modules = sys.modules
    if "_ssl" in modules:
        modules["_ssl"].RAND_add(os.urandom(32), 32.0)
    random.seed()
    for generator in list(_unseeded):
        generator.seed()
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    # Names of temporary files come from a generator that is made when it is needed.
    if hasattr(modules.get("tempfile"), "_name_sequence"):
        modules["tempfile"]._name_sequence = None


def _reach_openssl():
    """Its generator may be in use by other modules; only `_ssl` can renew it."""
    if "_ssl" in sys.modules:
        return
    with open("/proc/self/maps", "rb") as maps:
        if b"/libcrypto" not in maps.read():
            return
    try:
        import _ssl  # noqa: F401
    except ImportError as cause:
        text = f"without Python's ssl the generator of OpenSSL can't be renewed: {cause}"
        raise SnowforkError("SF_IDENTITY_FAILED", text) from cause


# Generators that took their seed from the system. Whoever gave one a seed wants its numbers.
_unseeded = weakref.WeakSet()
_seed = random.Random.seed


def _noting_seed(self, a=None, version=2):
    _seed(self, a, version)
    if type(self) is random.Random and a is None:
        _unseeded.add(self)
    else:
        _unseeded.discard(self)


_noting_seed.__doc__ = _seed.__doc__
random.Random.seed = _noting_seed


def _forget_threads():
    global _lock, _callers
    _lock = threading.RLock()
    _callers = 0


# In a child of os.fork the lock may be held by a thread that is not there.
os.register_at_fork(after_in_child=_forget_threads)
