"""Values that travel: Python's to and from MessagePack.

Owns nothing and knows nothing of forks; called by the other parts. Only what other languages have
a word for goes through: None, bool, int of 64 bits, float, str, bytes, datetime with a time zone,
list (a tuple arrives as one), dict. The format:
https://github.com/msgpack/msgpack/blob/master/spec.md
"""

import struct

from ._errors import SnowforkError

VALUE_BYTES_MAX = 8 * 1024 * 1024
"""Of a value that is handed to `exit`, encoded."""

_DEPTH_MAX = 256
# Extension types: MessagePack's own timestamp, and JavaScript's `undefined`.
_TIMESTAMP = -1
_UNDEFINED = 0

# No decoder of JavaScript gives it back: it would set the object's prototype.
_KEY_REFUSED = "__proto__"

# First bytes: the template of the integer or the length behind each, and its largest value.
_STR = ((0xD9, ">BB", 0xFF), (0xDA, ">BH", 0xFFFF), (0xDB, ">BI", 0xFFFF_FFFF))
_BIN = ((0xC4, ">BB", 0xFF), (0xC5, ">BH", 0xFFFF), (0xC6, ">BI", 0xFFFF_FFFF))
_ARRAY = ((0xDC, ">BH", 0xFFFF), (0xDD, ">BI", 0xFFFF_FFFF))
_MAP = ((0xDE, ">BH", 0xFFFF), (0xDF, ">BI", 0xFFFF_FFFF))
_UINT = (
    (0xCC, ">BB", 2**8 - 1), (0xCD, ">BH", 2**16 - 1),
    (0xCE, ">BI", 2**32 - 1), (0xCF, ">BQ", 2**64 - 1),
)
_INT = ((0xD0, ">Bb", 2**7), (0xD1, ">Bh", 2**15), (0xD2, ">Bi", 2**31), (0xD3, ">Bq", 2**63))

_NUMBERS = {
    0xCA: struct.Struct(">f"), 0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"), 0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"), 0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"), 0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"), 0xD3: struct.Struct(">q"),
}
_BYTE, _SHORT, _LONG = struct.Struct(">B"), struct.Struct(">H"), struct.Struct(">I")
_LENGTHS = {
    0xC4: _BYTE, 0xC5: _SHORT, 0xC6: _LONG, 0xC7: _BYTE, 0xC8: _SHORT, 0xC9: _LONG,
    0xD9: _BYTE, 0xDA: _SHORT, 0xDB: _LONG, 0xDC: _SHORT, 0xDD: _LONG, 0xDE: _SHORT, 0xDF: _LONG,
}


def encode(value, bytes_max=VALUE_BYTES_MAX):
    """Raises SnowforkError: SF_BAD_REQUEST for what has no form, SF_VALUE_TOO_LARGE."""
    parts = []
    try:
        _write(value, parts.append, 0)
    except (TypeError, ValueError, OverflowError, RecursionError) as cause:
        text = f"the value has no MessagePack form: {cause}"
        raise SnowforkError("SF_BAD_REQUEST", text) from cause
    encoded = b"".join(parts)
    if len(encoded) > bytes_max:
        text = f"the value takes {len(encoded)} bytes as MessagePack, at most {bytes_max} may be"
        raise SnowforkError("SF_VALUE_TOO_LARGE", text)
    return encoded


def decode(encoded):
    """Raises SnowforkError SF_BAD_REQUEST when the bytes are not exactly one value."""
    reader = _Reader(encoded)
    try:
        value = reader.value(0)
        if reader.at != len(encoded):
            raise ValueError(f"{len(encoded) - reader.at} bytes stand behind it")
        return value
    except (TypeError, ValueError, OverflowError, RecursionError, struct.error) as cause:
        text = f"the bytes are no MessagePack value: {cause}"
        raise SnowforkError("SF_BAD_REQUEST", text) from cause


# --- Writing ------------------------------------------------------------------------------------


def _write(value, put, depth):
    if depth > _DEPTH_MAX:
        raise ValueError(f"nested more than {_DEPTH_MAX} deep")
    if value is None:
        put(b"\xc0")
    elif value is True or value is False:
        put(b"\xc3" if value else b"\xc2")
    elif isinstance(value, float):
        put(struct.pack(">Bd", 0xCB, value))
    elif isinstance(value, int):
        put(_integer(value))
    elif isinstance(value, str):
        text = value.encode()
        put(_head(len(text), 0xA0, 31, _STR) + text)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        put(_head(len(raw), 0, -1, _BIN) + raw)
    elif isinstance(value, (list, tuple)):
        put(_head(len(value), 0x90, 15, _ARRAY))
        for item in value:
            _write(item, put, depth + 1)
    elif isinstance(value, dict):
        put(_head(len(value), 0x80, 15, _MAP))
        for key, item in value.items():
            if key == _KEY_REFUSED:
                raise ValueError(f"a dict has the key {_KEY_REFUSED}")
            _write(key, put, depth + 1)
            _write(item, put, depth + 1)
    else:
        put(_other(value))


def _head(size, tiny, tiny_max, forms):
    if size <= tiny_max:
        return bytes((tiny | size,))
    for first, template, largest in forms:
        if size <= largest:
            return struct.pack(template, first, size)
    raise ValueError(f"{size} bytes or items in one")


def _integer(value):
    if -32 <= value <= 127:
        return struct.pack(">b", value)
    for first, template, bound in _UINT if value >= 0 else _INT:
        if -bound <= value <= bound:
            return struct.pack(template, first, value)
    raise ValueError("an integer has more than 64 bits")


def _other(value):
    kind = type(value)
    if kind.__module__ == "datetime" and kind.__name__ == "datetime":
        if value.utcoffset() is None:
            raise ValueError("a datetime without a time zone is no moment")
        return _moment(value)
    # Integers of other libraries, as NumPy's; their floats are Python's.
    if hasattr(kind, "__index__"):
        return _integer(value.__index__())
    raise TypeError(f"it is made of numbers, texts, bytes, lists and dicts, not {kind.__name__}")


def _moment(value):
    import datetime

    since = value - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    seconds, nanoseconds = since.days * 86_400 + since.seconds, since.microseconds * 1000
    if 0 <= seconds < 2**34:
        return struct.pack(">BbQ", 0xD7, _TIMESTAMP, nanoseconds << 34 | seconds)
    return struct.pack(">BBbIq", 0xC7, 12, _TIMESTAMP, nanoseconds, seconds)


# --- Reading ------------------------------------------------------------------------------------


class _Reader:
    """One value after the other out of bytes that somebody else wrote."""

    def __init__(self, encoded):
        self.at = 0
        self._bytes = memoryview(encoded)

    def value(self, depth):
        if depth > _DEPTH_MAX:
            raise ValueError(f"nested more than {_DEPTH_MAX} deep")
        first = self._take(1)[0]
        if first <= 0x7F:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if first <= 0x8F:
            return self._map(first & 0x0F, depth)
        if first <= 0x9F:
            return self._list(first & 0x0F, depth)
        if first <= 0xBF:
            return self._text(first & 0x1F)
        if first <= 0xC3 and first != 0xC1:
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if 0xD4 <= first <= 0xD8:
            return self._extension(1 << first - 0xD4)
        if first not in _LENGTHS:
            raise ValueError(f"there is no type {first:#x}")
        return self._long(first, self._number(_LENGTHS[first]), depth)

    def _long(self, first, size, depth):
        if first <= 0xC6:
            return bytes(self._take(size))
        if first <= 0xC9:
            return self._extension(size)
        if first <= 0xDB:
            return self._text(size)
        return self._list(size, depth) if first <= 0xDD else self._map(size, depth)

    def _take(self, count):
        taken = self._bytes[self.at : self.at + count]
        if len(taken) < count:
            raise ValueError("it ends early")
        self.at += count
        return taken

    def _number(self, form):
        return form.unpack(self._take(form.size))[0]

    def _text(self, size):
        return str(self._take(size), "utf-8", "replace")

    def _list(self, count, depth):
        # No comprehension: it would be one more call for each level.
        found = []
        for _ in range(count):
            found.append(self.value(depth + 1))
        return found

    def _map(self, count, depth):
        found = {}
        for _ in range(count):
            key = self.value(depth + 1)
            found[key] = self.value(depth + 1)
        return found

    def _extension(self, size):
        kind = struct.unpack(">b", self._take(1))[0]
        content = bytes(self._take(size))
        if kind == _UNDEFINED and size == 1:
            return None
        return _read_moment(content) if kind == _TIMESTAMP else content


def _read_moment(content):
    import datetime

    if len(content) == 12:
        nanoseconds, seconds = struct.unpack(">Iq", content)
    elif len(content) in (4, 8):
        both = int.from_bytes(content, "big")
        nanoseconds, seconds = both >> 34, both & 2**34 - 1
    else:
        raise ValueError(f"a time of {len(content)} bytes")
    since = datetime.timedelta(seconds=seconds, microseconds=nanoseconds // 1000)
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc) + since
