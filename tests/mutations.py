"""Seeded random changes of files: bits, spans and sizes in any file, values in TOML and JSON."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

_SIZES = (0, 1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_WORDS = (
    "{}", "[]", '""', "[[]]", "{a=1}", "[{}]", "nan", "-inf", "1e400", "1e-400", "-1", "0",
    "9" * 40, "9" * 5000, "true", "1979-05-27", "07:32:00",
    '"\\u0000"', '"1e99999999"', '"\\u202e"',
    '"../../x"', '"' + "x" * 300 + '"', "[1,2,3]", '["a","a"]', "0.5", '"~nobody/x"', '"/dev/null"',
    '"1/0"', '["1/16","1/16"]', '"os:system"', '"a:b:c"', '"\\uFFFF"', "[[1],[2]]", "{low=1}",
    "{low=1,high=0}", "{choices=[]}", '{type="int",low=1,high=2}', "{low=[],high={}}",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**64, 10**40, 0.5, -0.5, 1e308, "", "x", "\0", "../../x",
    "/dev/null", "\ud800", "x" * 300, "1e99999999", [], {}, [None], [[]], {"": None}, [{}] * 3,
    [2**40] * 4, {"a": {"b": []}},
)  # fmt: skip

Mutate = Callable[[bytes, random.Random], bytes]


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Change a few places of any file, or cut it, or repeat a part of it."""
    changed = bytearray(content or b"\0")
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(changed) + 1)
        span = draw.choice((1, 2, 4, 8, 64, 1024))
        kind = draw.randrange(8)
        if kind < 2 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            changed[at : at + span] = draw.randbytes(span)
        elif kind == 3:
            form = draw.choice(("<I", ">I", "<Q", ">Q", "<H", ">H", "B"))
            size = draw.choice(_SIZES) & (256 ** struct.calcsize(form) - 1)
            changed[at : at + struct.calcsize(form)] = struct.pack(form, size)
        elif kind == 4:
            del changed[at : at + span]
        elif kind == 5:
            changed[at:at] = changed[at : at + span] * draw.choice((1, 2, 100))
        elif kind == 6:
            changed[at:at] = draw.randbytes(draw.choice((1, 4, 100)))
        elif draw.random() < 0.3:
            del changed[at:]
        if not changed:
            return b""
    return bytes(changed)


def mutate_toml(content: bytes, draw: random.Random) -> bytes:
    """Change a value, a key or a line of a TOML file; sometimes bytes of it."""
    if draw.random() < 0.2:
        return mutate_bytes(content, draw)
    lines = content.decode().splitlines()
    for _ in range(draw.choice((1, 1, 2, 3))):
        number = draw.randrange(len(lines))
        kind, line = draw.randrange(6), lines[number]
        if kind < 4 and "=" in line:
            if kind == 3 and (inner := list(re.finditer(r"(?<== )[^,}\]]+", line))):
                found = draw.choice(inner)
                lines[number] = line[: found.start()] + draw.choice(_WORDS) + line[found.end() :]
            else:
                lines[number] = line.partition("=")[0] + "= " + draw.choice(_WORDS)
        elif kind == 4:
            other = draw.choice(lines)
            lines.insert(number, other)
        else:
            lines[number] = line.replace(draw.choice("abcdefghi.[]="), draw.choice(("", "x", ".")))
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """Change a value anywhere in a JSON file, which stays JSON; sometimes bytes of it."""
    if draw.random() < 0.2:
        return mutate_bytes(content, draw)
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    by_line = _is_json(lines[at]) and len(lines) > 1
    whole = json.loads(lines[at] if by_line else content)
    for _ in range(draw.choice((1, 1, 2))):
        whole = _with_another_value(whole, draw)
    text = json.dumps(whole).encode()
    return b"\n".join([*lines[:at], text, *lines[at + 1 :], b""]) if by_line else text


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _with_another_value(content: Any, draw: random.Random) -> Any:
    if not content or not isinstance(content, dict | list) or draw.random() < 0.05:
        return draw.choice(_VALUES)
    changed: Any = dict(content) if isinstance(content, dict) else list(content)
    key = draw.choice(list(content)) if isinstance(content, dict) else draw.randrange(len(content))
    kind = draw.randrange(10)
    if kind == 0:
        del changed[key]
    elif kind == 1 and isinstance(changed, dict):
        changed[draw.choice(("", "x", "../x", "1" * 300))] = changed.pop(key)
    elif kind == 1:
        changed.append(changed[key])
    else:
        changed[key] = _with_another_value(content[key], draw)
    return changed
