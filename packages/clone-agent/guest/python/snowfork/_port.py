"""The way to the agent of the host: questions through the unix socket of `sf-guestd`.

Owns the connections and nothing of what is asked. Each thread takes a connection out of the pool
while it asks; none is ever closed, as a clone belongs to the connection that asked for it. Frames
are drawn in packages/sdk/src/api/port.ts, requests are listed in packages/sdk/src/api/guest.ts.
"""

import os
import socket
import struct
import threading
import time

from . import _identity
from ._errors import SnowforkError
from ._values import VALUE_BYTES_MAX, decode, encode

_SOCKET_PATH = "/run/snowfork/guest.sock"
_MESSAGE_BYTES_MAX = VALUE_BYTES_MAX + 65_536
_WATCH_RETRY_S = 1

# Frames: length of the payload, type, flags, 0, stream; then the payload.
_HEADER = struct.Struct("<IBBHI")
_PAYLOAD_BYTES_MAX = 65_536
_REQUEST = 0x10
_RESPONSE = 0x11
_FORKED = 0x13
_FLAG_MORE = 1

_lock = threading.Lock()
_idle = []
# A call that was interrupted has left its answer in these. They stay open for the clones' sake.
_spoilt = []
_watching = False


def ask(method, params):
    """The result of one request. Raises SnowforkError: the agent's, or SF_AGENT_UNREACHABLE."""
    with _lock:
        connection = _idle.pop() if _idle else None
    connection = connection or _Connection()
    whole = False
    try:
        answer = connection.ask(method, params)
        whole = True
    finally:
        with _lock:
            (_idle if whole else _spoilt).append(connection)
    error = answer.get("error")
    if error is None:
        return answer.get("result")
    raise SnowforkError(error["code"], error["message"], error.get("details"))


def watch():
    """From now on a thread waits for word of forks that other programs ask for."""
    global _watching
    with _lock:
        if _watching:
            return
        _watching = True
    try:
        connection = _Connection()
        # Answered, so that sf-guestd knows of it and tells of every fork from here on.
        connection.ask("info", {})
        _start_watching(connection)
    except SnowforkError:
        # Outside a VM there is nothing to watch.
        _watching = False


def _start_watching(connection):
    threading.Thread(target=_watch, args=[connection], name="snowfork", daemon=True).start()


def _watch(connection):
    while True:
        try:
            connection = connection or _Connection()
            connection.watch()
        except SnowforkError:
            connection = None
            time.sleep(_WATCH_RETRY_S)


class _Connection:
    """One request at a time, to be asked by whoever has taken it from the pool."""

    def __init__(self):
        path = _socket_path()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._last_id = 0
        try:
            self._socket.connect(path)
        except OSError as cause:
            text = (
                "this program does not run inside a Snowfork VM, or its guest side does not run: "
                f"{path}: {cause}"
            )
            raise SnowforkError("SF_AGENT_UNREACHABLE", text) from cause

    def ask(self, method, params):
        self._last_id += 1
        request = {"id": self._last_id, "method": method, "params": params}
        self._send(encode(request, _MESSAGE_BYTES_MAX))
        answer = decode(self._receive())
        if not isinstance(answer, dict) or answer.get("id") != self._last_id:
            raise _not_understood()
        return answer

    def watch(self):
        """Never returns; what is told of forks is told on each connection."""
        self._receive()
        raise _not_understood()

    def _send(self, message):
        for at in range(0, len(message), _PAYLOAD_BYTES_MAX):
            payload = message[at : at + _PAYLOAD_BYTES_MAX]
            more = _FLAG_MORE if at + len(payload) < len(message) else 0
            try:
                self._socket.sendall(_HEADER.pack(len(payload), _REQUEST, more, 0, 0) + payload)
            except OSError as cause:
                raise SnowforkError("SF_AGENT_UNREACHABLE", f"sf-guestd: {cause}") from cause

    def _receive(self):
        """The next response; on the way to it, what is told of forks."""
        message = bytearray()
        while True:
            length, kind, flags, reserved, _ = _HEADER.unpack(self._read(_HEADER.size))
            if reserved or flags & ~_FLAG_MORE or length > _PAYLOAD_BYTES_MAX:
                raise _not_understood()
            payload = self._read(length)
            if kind == _FORKED:
                _take_notice(payload)
                continue
            if kind != _RESPONSE or len(message) + length > _MESSAGE_BYTES_MAX:
                raise _not_understood()
            message += payload
            if not flags:
                return bytes(message)

    def _read(self, count):
        read = bytearray()
        while len(read) < count:
            try:
                part = self._socket.recv(count - len(read))
            except OSError as cause:
                raise SnowforkError("SF_AGENT_UNREACHABLE", f"sf-guestd: {cause}") from cause
            if not part:
                text = "sf-guestd closed the connection before it answered"
                raise SnowforkError("SF_AGENT_UNREACHABLE", text)
            read += part
        return bytes(read)


def _socket_path():
    return os.environ.get("SNOWFORK_GUEST_SOCKET", _SOCKET_PATH)


def _take_notice(payload):
    lines = dict(line.split("=", 1) for line in payload.decode().splitlines() if "=" in line)
    notice = _identity.Notice(lines["role"], int(lines["id"]))
    _identity.take(notice, int(lines["generation"]))


def _not_understood():
    return SnowforkError("SF_INTERNAL", "what sf-guestd sent is not understood")


def _forget_connections():
    global _lock, _watching
    _lock = threading.Lock()
    _idle.clear()
    _spoilt.clear()
    if not _watching:
        return
    try:
        _start_watching(_Connection())
    except SnowforkError:
        _watching = False


# In a child of os.fork the connections are its parent process's; threads are not inherited.
os.register_at_fork(after_in_child=_forget_connections)
