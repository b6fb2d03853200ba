"""Reading pickles as lists of opcodes, into bytes, numbers, text, lists and dicts.

A pickle is a program that makes objects. Python's own reader executes it: even if only a few
classes are allowed, the file decides the arguments of their calls, and forged arguments of numpy's
constructors turn bytes of the file into pointers. This module executes nothing. Opcodes for plain
values make these; a global stays a name (`Global`), and every use of it is passed to the `Rules`
given by the caller, which build the few things that they expect and refuse everything else.

The cost of a file is bounded by its length: every opcode makes at most one small value, no opcode
copies what another has made, and numbers above a length are refused (`MAX_NUMBER`).
"""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections.abc import Callable
from mmap import mmap
from typing import Any

from krscale.pickle_rules import Global, RefusedError, Rules, UnknownObjectError, kind_of

_STOP, _BININT1, _SHORT_BINUNICODE = ord("."), ord("K"), ord("\x8c")
_BINPUT, _LONG_BINPUT, _MEMOIZE = ord("q"), ord("r"), ord("\x94")
_SHORT = frozenset((ord("U"), ord("C"), _SHORT_BINUNICODE))
_NEWEST = 5
MAX_NUMBER = 64
"""Bytes of the longest whole number that is read."""
_MAX_DIGITS = 160
_MAX_OPCODES = 2_000_000
"""A CIFAR-100 file of 50,000 images has 300,000."""
_MAX_OPEN = 100
"""Most nested open containers; a state dict has about ten."""
_MAX_LINE = 2**28
_MAX_KEY = 2**31  # limit of integer keys: larger ones can be chosen to have the same hash
_RUN = 4096
_LARGE = 2**16
_MISSING, _NONE = object(), type(None)

Content = bytes | mmap


def read_plain(content: Content, rules: Rules, start: int = 0) -> tuple[Any, int]:
    """Read one pickle of any protocol, without executing anything.

    Args:
        content: Content of the file.
        rules: How globals are replaced.
        start: Where the pickle begins.

    Returns:
        Its value, and where it ends. Strings of Python 2 are bytes.

    Raises:
        RefusedError: If it is damaged, or holds anything but plain values and what `rules` accept.

    Example:
        >>> import pickle
        >>> read_plain(pickle.dumps({"labels": [1, 2]}), Rules())[0]
        {'labels': [1, 2]}
    """
    reader = _Reader(content, rules, start)
    try:
        return reader.run(), reader.at
    except RefusedError:
        raise
    except (IndexError, struct.error):
        raise RefusedError(f"ends early, or is damaged at byte {reader.at}") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise RefusedError(f"is damaged at byte {reader.at} ({error})") from None


class _Reader:
    def __init__(self, content: Content, rules: Rules, start: int) -> None:
        self.content, self.rules, self.at = content, rules, start
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Read opcodes up to the one that ends the pickle."""
        content, count = self.content, 0
        while (code := content[self.at]) != _STOP:
            count += 1
            if count > _MAX_OPCODES:
                raise RefusedError(f"has more than {_MAX_OPCODES:,} opcodes")
            self.at += 1
            if code == _BININT1:
                count += self._small_numbers()
            elif code in _SHORT:
                count += self._small_texts(code)
            else:
                step = _STEPS.get(code)
                if step is None:
                    raise UnknownObjectError(_refused(code))
                step(self)
        self.at += 1
        if len(self.stack) != 1 or self.below:
            raise RefusedError(f"is damaged at byte {self.at}")
        return self.stack[0]

    def _small_numbers(self) -> int:
        """Read the series of one-byte numbers that begins here; labels are long lists of these."""
        at, content = self.at, self.content
        if content[at + 1] != _BININT1:
            self.stack.append(content[at])
            self.at += 1
            return 0
        codes = content[at + 1 : at + 1 + 2 * _RUN : 2]
        count = len(codes) - len(codes.lstrip(b"K")) + 1
        numbers = content[at : at + 2 * count : 2]
        if len(numbers) < count:
            raise IndexError
        self.stack.extend(numbers)
        self.at += 2 * count - 1
        return count - 1

    def _small_texts(self, code: int) -> int:
        """Read the series of short strings that begins here, memoized or not, e.g. file names."""
        content, memo, at, count = self.content, self.memo, self.at, 0
        while True:
            end = at + 1 + content[at]
            found: bytes | str = content[at + 1 : end]
            if code == _SHORT_BINUNICODE:
                found = _text(found)  # type: ignore[arg-type]
            self.stack.append(found)
            after, count = content[end], count + 2
            if after == _MEMOIZE:
                memo[len(memo)], end = found, end + 1
            elif after == _BINPUT:
                memo[content[end + 1]], end = found, end + 2
            elif after == _LONG_BINPUT:
                memo[int.from_bytes(content[end + 1 : end + 5], "little")] = found
                end += 5
            if content[end] != code:
                self.at = end
                return count
            at = end + 1

    def _take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        found = self.content[self.at : self.at + size]
        if len(found) < size:
            raise IndexError
        self.at += size
        return found

    def _sized(self, width: int) -> bytes:
        """Return text that follows the number of its bytes."""
        size = int.from_bytes(self._take(width), "little")
        if size > len(self.content):
            raise IndexError
        return self._take(size)

    def _sized_bytes(self, width: int) -> bytes | memoryview:
        """Return bytes that follow their number; large ones, such as images, without a copy.

        A piece of a mapped file is always copied, because a view of it would prevent closing the
        file.
        """
        size = int.from_bytes(self._take(width), "little")
        if size < _LARGE or isinstance(self.content, mmap) or self.at + size > len(self.content):
            return self._take(min(size, len(self.content) + 1))
        self.at += size
        return memoryview(self.content)[self.at - size : self.at]

    def _line(self, longest: int = _MAX_DIGITS) -> bytes:
        end = self.content.find(b"\n", self.at, self.at + longest + 1)
        if end < 0:
            raise RefusedError(f"has a line that does not end, at byte {self.at}")
        found = self._take(end - self.at)
        self.at += 1
        return found

    def _marked(self) -> list[Any]:
        """Return the values read since the last mark."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def _mark(self) -> None:
        if len(self.below) >= _MAX_OPEN:
            raise RefusedError(f"has more than {_MAX_OPEN} containers within each other")
        self.below.append(self.stack)
        self.stack = []

    def _put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def _get(self, key: int) -> None:
        found = self.memo.get(key, _MISSING)
        if found is _MISSING:
            raise RefusedError(f"refers to a value {key} that it does not have")
        self.stack.append(found)

    def _memoize(self) -> None:
        self._put(len(self.memo))

    def _tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise RefusedError(f"adds items to {kind_of(target)}")
        target.extend(items)

    def _set(self, target: Any, items: list[Any]) -> Any:
        """Put keys and values into a dictionary."""
        if type(target) is not dict or len(items) % 2:
            raise RefusedError(f"sets keys of {kind_of(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            small = type(key) is int and abs(key) < _MAX_KEY
            if not small and type(key) not in (str, bytes, bool, _NONE):
                raise RefusedError(f"has a key that is no text or small number: {kind_of(key)}")
            target[key] = value
        return target

    def _find(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("asks for something that has no name")
        self.stack.append(self.rules.find(Global(module[:200], name[:200])))

    def _set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def _set_many(self, items: list[Any]) -> None:
        self._set(self.stack[-1], items)

    def _find_on_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._find(module, name)

    def _called(self, how: Callable[[Any, tuple[Any, ...]], object]) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple:
            raise RefusedError(f"calls something with {kind_of(arguments)}")
        self.stack.append(how(function, arguments))

    def _build(self) -> None:
        state = self.stack.pop()
        self.rules.build(self.stack[-1], state)

    def _persistent(self) -> None:
        self.stack.append(self.rules.persistent(self.stack.pop()))

    def _pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _protocol(self) -> None:
        if (found := self._take(1)[0]) > _NEWEST:
            raise RefusedError(f"is of protocol {found}; 0 to {_NEWEST} are read")


def _refused(code: int) -> str:
    names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
    return f"has the opcode {names.get(chr(code), hex(code))}, which is not read"


def _long(content: bytes) -> int:
    if len(content) > MAX_NUMBER:
        raise RefusedError(f"has a whole number of {len(content):,} bytes")
    return int.from_bytes(content, "little", signed=True)


def _digits(line: bytes) -> int | bool:
    """Read an integer written as text; `00` and `01` are False and True."""
    return line == b"01" if line in (b"00", b"01") else int(line)


def _quoted(line: bytes) -> bytes:
    """Read a string of Python 2, written as in source code."""
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise RefusedError("has a string without quotes")
    return codecs.escape_decode(line[1:-1])[0]


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _unsigned(width: int) -> _Step:
    return lambda r: r._push(int.from_bytes(r._take(width), "little"))


def _bytes(width: int) -> _Step:
    return lambda r: r._push(r._sized_bytes(width))


def _unicode(width: int) -> _Step:
    return lambda r: r._push(_text(r._sized(width)))


_Step = Callable[[_Reader], object]
_STEPS: dict[int, _Step] = {
    ord("\x80"): _Reader._protocol,
    ord("\x95"): lambda r: r._take(8),  # the size of a frame, which is not needed
    ord("N"): lambda r: r._push(None),
    ord("\x88"): lambda r: r._push(True),
    ord("\x89"): lambda r: r._push(False),
    ord("I"): lambda r: r._push(_digits(r._line())),
    ord("L"): lambda r: r._push(int(r._line().removesuffix(b"L"))),
    ord("J"): lambda r: r._push(int.from_bytes(r._take(4), "little", signed=True)),
    ord("M"): _unsigned(2),
    ord("\x8a"): lambda r: r._push(_long(r._sized(1))),
    ord("\x8b"): lambda r: r._push(_long(r._sized(4))),
    ord("F"): lambda r: r._push(float(r._line())),
    ord("G"): lambda r: r._push(struct.unpack(">d", r._take(8))[0]),
    ord("S"): lambda r: r._push(_quoted(r._line(_MAX_LINE))),
    ord("T"): _bytes(4),
    ord("B"): _bytes(4),
    ord("\x8e"): _bytes(8),
    ord("\x96"): _bytes(8),
    ord("V"): lambda r: r._push(r._line(_MAX_LINE).decode("raw-unicode-escape")),
    ord("r"): lambda r: r._put(int.from_bytes(r._take(4), "little")),
    ord("X"): _unicode(4),
    ord("\x8d"): _unicode(8),
    ord("]"): lambda r: r._push([]),
    ord("a"): lambda r: r._extend([r.stack.pop()]),
    ord("e"): lambda r: r._extend(r._marked()),
    ord("l"): lambda r: r._push(r._marked()),
    ord(")"): lambda r: r._push(()),
    ord("t"): lambda r: r._push(tuple(r._marked())),
    ord("\x85"): lambda r: r._tuple(1),
    ord("\x86"): lambda r: r._tuple(2),
    ord("\x87"): lambda r: r._tuple(3),
    ord("}"): lambda r: r._push({}),
    ord("d"): lambda r: r._push(r._set({}, r._marked())),
    ord("s"): _Reader._set_one,
    ord("u"): lambda r: r._set_many(r._marked()),
    ord("0"): _Reader._pop,
    ord("2"): lambda r: r._push(r.stack[-1]),
    ord("("): _Reader._mark,
    ord("1"): lambda r: r._marked(),
    ord("g"): lambda r: r._get(int(r._line())),
    ord("h"): lambda r: r._get(r._take(1)[0]),
    ord("j"): lambda r: r._get(int.from_bytes(r._take(4), "little")),
    ord("p"): lambda r: r._put(int(r._line())),
    ord("q"): lambda r: r._put(r._take(1)[0]),
    ord("\x94"): _Reader._memoize,
    ord("c"): lambda r: r._find(r._line().decode(), r._line().decode()),
    ord("\x93"): _Reader._find_on_stack,
    ord("R"): lambda r: r._called(r.rules.call),
    ord("\x81"): lambda r: r._called(r.rules.new),
    ord("b"): _Reader._build,
    ord("Q"): _Reader._persistent,
}
"""What is done for each opcode; others (`pickletools`) are refused."""
