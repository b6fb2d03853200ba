import contextlib
import math
import pickle
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krscale import plain_pickle
from krscale.pickle_rules import Global, RefusedError, Rules
from krscale.plain_pickle import read_plain

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(content):
    return read_plain(content, Rules())[0]


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(-1000, 1000), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_values_are_read_as_python_reads_them(value, protocol):
    content = pickle.dumps(value, protocol)
    # Compare the texts: NaN is not equal to itself, and 1 == True.
    assert repr(read(content)) == repr(pickle.loads(content))


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("size", [0, 3, 255, 256, 70_000])
def test_bytes_of_any_length(size, protocol):
    value = bytes(range(256)) * (size // 256 + 1)
    assert read(pickle.dumps([value[:size], 1], protocol)) == [value[:size], 1]


def test_long_runs_of_small_numbers_and_of_names():
    numbers = [n % 256 for n in range(10_001)]
    names = [f"{n}.png" for n in range(3000)]
    for protocol in PROTOCOLS:
        assert read(pickle.dumps([numbers, names, names[:2]], protocol)) == [
            numbers,
            names,
            names[:2],
        ]


def test_strings_of_python_2_are_bytes():
    # As cPickle wrote {'a': ['b\\n', 1L, True]} with protocols 0 and 2.
    text = b"(dp1\nS'a'\np2\n(lp3\nS'b\\n'\np4\naL1L\naI01\nas."
    binary = b"\x80\x02}q\x01U\x01aq\x02]q\x03(U\x02b\nq\x04\x8a\x01\x01\x88es."
    assert read(text) == read(binary) == {b"a": [b"b\n", 1, True]}


def test_the_end_is_returned():
    content = pickle.dumps([1], 2) + pickle.dumps([2], 2) + b"rest"
    first, end = read_plain(content, Rules())
    second, last = read_plain(content, Rules(), end)
    assert (first, second, content[last:]) == ([1], [2], b"rest")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends early"),
        (b"N", "ends early"),
        (b".", "damaged"),
        (b"NN.", "damaged"),
        (b"(N.", "damaged"),
        (b"K", "ends early"),
        (b"(K\x01K\x02K", "ends early"),
        (b"U\x05ab.", "ends early"),
        (b"T\xff\xff\xff\xffab.", "ends early"),
        (b"\x8e" + b"\xff" * 8 + b"ab.", "ends early"),
        (b"\x80\x09N.", "is of protocol 9"),
        (b"h\x07.", "refers to a value 7"),
        (b"cos\nsystem\n.", "asks for os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
        (b"\x8c\x02os]\x93.", "asks for something that has no name"),
        (b"(ios\nsystem\n.", "has the opcode INST"),
        (b"(N)o.", "has the opcode OBJ"),
        (b"\x82\x01.", "has the opcode EXT1"),
        (b"Pname\n.", "has the opcode PERSID"),
        (b"NQ.", "refers to objects outside"),
        (b"N)R.", "calls a NoneType"),
        (b"N)\x81.", "makes a NoneType"),
        (b"NNb.", "sets the state of a NoneType"),
        (b"\x8f.", "has the opcode EMPTY_SET"),
        (b"\x97.", "has the opcode NEXT_BUFFER"),
        (b"\xff.", "has the opcode 0xff"),
        (b"}]Ns.", "a key that is no text or small number: a list"),
        (b"})Ns.", "a key that is no text or small number: a tuple"),
        (b"}\x8a\x08" + b"\x01" * 8 + b"Ns.", "no text or small number"),
        (b"}(Nu.", "sets keys of a dict"),
        (b"N(Ne.", "adds items to a NoneType"),
        (b"\x8b\x00\x10\x00\x00" + b"\x01" * 4096 + b".", "a whole number of 4,096 bytes"),
        (b"L" + b"9" * 5000 + b"L\n.", "a line that does not end"),
        (b"I12x\n.", "is damaged"),
        (b"S'a\n.", "a string without quotes"),
        (b"(" * 101 + b".", "more than 100 containers"),
        (b"c\x1b[31mred\nname\n.", r"asks for \?\[31mred\.name"),
    ],
)
def test_what_is_not_plain_or_damaged_is_refused(content, message):
    with pytest.raises(RefusedError, match=message):
        read(content)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content):
    with contextlib.suppress(RefusedError):
        read(content)


def doubling():
    # A list of two references to a list of two references to ...
    return b"]" + b"".join(b"q%c](h%ch%ce" % (n, n, n) for n in range(200)) + b"."


def same_hash(number):
    return b"\x8a\x0a" + ((2**61 - 1) * number).to_bytes(10, "little") + b"N"


BOMBS = {
    "references that double": doubling(),
    "a list within a list": b"]q\x00" + b"]q\x01h\x00aq\x00" * 50_000 + b".",
    "a list that holds itself": b"]q\x00h\x00a.",
    "tuples within tuples": b")" + b"\x85" * 200_000 + b".",
    "too many opcodes": b"](" + b"N" * 100_100 + b"e.",
    "one text again and again": b"X\x00\x00\x10\x00" + b"a" * 2**20 + b"2" * 100_000,
    "keys of one hash": b"}(" + b"".join(same_hash(n) for n in range(1, 30_000)) + b"u.",
    "a count that is not there": b"\x8e" + (2**62).to_bytes(8, "little") + b".",
    "a frame that is not there": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "memory at a large number": b"Nr\xff\xff\xff\xff.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_no_more_than_their_length(name, monkeypatch):
    content = BOMBS[name]
    if name == "too many opcodes":
        monkeypatch.setattr(plain_pickle, "_MAX_OPCODES", 100_000)  # tracing two million is slow
    tracemalloc.start()
    start = time.process_time()
    with contextlib.suppress(RefusedError):
        read(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - start < 20  # not hours; tracing is slow
    assert peak < 2**20 + 200 * len(content)


def test_rules_stand_in_the_place_of_objects():
    class Points(Rules):
        def find(self, found):
            return found

        def call(self, function, arguments):
            return [str(function), *arguments]

        def build(self, value, state):
            value.append(state)

    content = b"cgeometry\nPoint\nK\x01K\x02\x86R}b."
    assert read_plain(content, Points())[0] == ["geometry.Point", 1, 2, {}]
    assert str(Global("a", "b")) == "a.b"
    assert math.isnan(read(pickle.dumps(math.nan)))
