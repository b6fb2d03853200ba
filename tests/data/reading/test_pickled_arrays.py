import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import krscale.data.reading.pickled_arrays
from krscale.data.reading.pickled_arrays import NumbersOnly, finished, read_numbers
from krscale.data.sources.cifar import Cifar10
from krscale.errors import UserError
from krscale.plain_pickle import read_plain

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
VALUES = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
BATCH = {b"data": VALUES, b"labels": [3, 1, 4, 1], b"filenames": [b"a.png", b"b.png"]}

M1 = b"J\xff\xff\xff\xff"  # -1
HUGE = b"\x8a\x09" + b"\0" * 8 + b"\x01"  # 2**64
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
U1 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + M1 + M1 + b"K\x00tb"


def array(kind=U1, shape=b"K\x02K\x04\x86", content=b"U\x0801234567", version=b"K\x01"):
    order = b"\x89"
    return EMPTY + b"(" + version + shape + kind + order + content + b"tb"


def dtype(name=b"U\x02u1", align=b"K\x00", copy=b"K\x01", state=None):
    made = b"cnumpy\ndtype\n" + name + align + copy + b"\x87R"
    return made + b"(" + (state or b"K\x03U\x01|NNN" + M1 + M1 + b"K\x00") + b"tb"


def batch(value):
    return b"\x80\x02}U\x04data" + value + b"s."


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_of_every_protocol_are_read_as_python_reads_them(protocol):
    content = pickle.dumps(BATCH, protocol)
    found, expected = read_numbers(content, "batch"), pickle.loads(content)
    assert np.array_equal(found.pop(b"data"), expected.pop(b"data"))
    assert found == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["u1", "i1", "?", "<u2", ">i4", "<i8", "f2", "<f4", ">f8"])
def test_arrays_of_every_type_and_order(protocol, kind):
    values = np.arange(24).reshape(2, 3, 4).astype(kind)
    content = pickle.dumps({b"a": values, b"b": np.asfortranarray(values), b"c": b""}, protocol)
    found = read_numbers(content, "batch")
    assert found[b"a"].dtype == found[b"b"].dtype == np.dtype(kind)
    assert np.array_equal(found[b"a"], values)
    assert np.array_equal(found[b"b"], values)
    assert found[b"c"] == b""


def test_arrays_as_python_2_wrote_them():
    found = read_numbers(batch(array()), "batch")[b"data"]
    assert found.dtype == np.uint8
    assert found.tobytes() == b"01234567"
    assert found.shape == (2, 4)


BUFFER = b"cnumpy.core.numeric\n_frombuffer\n"
LATIN = b"c_codecs\nencode\n"
PARTS = b"K\x03U\x01|U\x02O8K\x01\x86NN"
FORGED = {
    "flags of a type of objects": array(dtype(state=b"K\x03U\x01|NNN" + M1 + M1 + b"K\x3f")),
    "objects": array(dtype(b"U\x02O8"), content=b"U\x4012345678" + b"\x41" * 56),
    "objects by their letter": array(dtype(b"U\x01O")),
    "objects among others": array(dtype(b"U\x06u1, O8")),
    "a size of its own": array(dtype(state=b"K\x03U\x01|NNNK\x08K\x08K\x00")),
    "fields": array(dtype(state=b"K\x03U\x01|NU\x01a\x85}" + M1 + M1 + b"K\x00")),
    "parts": array(dtype(state=PARTS + M1 + M1 + b"K\x00")),
    "metadata": array(dtype(state=b"K\x04U\x01|NNN" + M1 + M1 + b"K\x00}")),
    "an order that is none": array(dtype(state=b"K\x03U\x01ONNN" + M1 + M1 + b"K\x00")),
    "a type of text": array(dtype(b"U\x02S8")),
    "a type of anything": array(dtype(b"U\x02V8")),
    "a type from a dictionary": array(dtype(b"}")),
    "a type from a list": array(dtype(b"](U\x01aU\x02O8\x86e")),
    "a state twice": array(U1 + b"(K\x03U\x01|NNN" + M1 + M1 + b"K\x00tb"),
    "an array without a state": EMPTY,
    "an array of a type without a state": array(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"),
    "more values than bytes": array(shape=b"K\x02K\x05\x86"),
    "fewer values than bytes": array(shape=b"K\x02K\x03\x86"),
    "a size below nothing": array(shape=b"J\xfe\xff\xff\xffJ\xfc\xff\xff\xff\x86"),
    "a size that is text": array(shape=b"U\x02ab\x85"),
    "a size that is yes": array(shape=b"\x88K\x08\x86"),
    "sizes that overflow": array(shape=HUGE + HUGE + b"\x86"),
    "nothing times more than can be": array(shape=b"K\x00" + HUGE + b"\x86", content=b"U\x00"),
    "a hundred axes": array(shape=b"(" + b"K\x01" * 100 + b"t", content=b"U\x011"),
    "values in a list": array(content=b"](K\x01K\x02e"),
    "values as text": array(content=b"X\x08\x00\x00\x0001234567"),
    "another version": array(version=b"K\x02"),
    "a state of an array that has one": array() + b"(K\x01K\x08\x85" + U1 + b"\x89U\x0801234567tb",
    "a state of a dictionary": b"}}b",
    "another class": EMPTY.replace(b"ndarray", b"dtype") + b"Nb",
    "another call": b"cnumpy\nndarray\nK\x08\x85R",
    "a type that is called as a class": b"cnumpy\ndtype\nU\x02u1\x85\x81",
    "an array that is called": EMPTY + b")R",
    "another encoding": LATIN + b"X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R",
    "text that is not of the encoding": LATIN + b"X\x03\0\0\0\xe2\x82\xacX\x06\0\0\0latin1\x86R",
    "bytes of a number": b"c__builtin__\nbytes\nK\x08\x85R",
    "a single number": b"cnumpy.core.multiarray\nscalar\n" + U1 + b"U\x01a\x86R",
    "memory of another kind": BUFFER + b"(K\x08" + U1 + b"K\x08\x85U\x01CtR",
    "a constructor of strings": b"cnumpy\nfromstring\nU\x01a\x85R",
    "a loader of pickles": b"cnumpy\nload\nU\x01a\x85R",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_arrays_are_refused_in_words(name):
    with pytest.raises(UserError, match=r"^file: not a batch of images that can be trusted: it \w"):
        read_numbers(batch(FORGED[name]), "file")


def test_a_forged_type_in_a_process_of_its_own(tmp_path):
    """Without a check, NumPy would use bytes as pointers, which would end the process."""
    (tmp_path / "batch").write_bytes(batch(FORGED["objects"]))
    code = (
        "from krscale.data.reading.pickled_arrays import read_numbers\n"
        "from krscale.errors import UserError\n"
        "try: print(repr(read_numbers(open('batch', 'rb').read(), 'batch')))\n"
        "except UserError as error: print('refused')"
    )
    root = Path(krscale.data.reading.pickled_arrays.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_text_is_not_turned_into_bytes_again_and_again():
    text = b"X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x01"
    once = b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R0"
    with pytest.raises(UserError, match="turns more text into bytes than it holds"):
        read_numbers(text + once * 1000 + b".", "file")


def test_an_array_in_a_list_is_no_array_of_a_batch():
    content = batch(b"](" + array() + b"e")[:-1] + b"U\x06labels]s."
    with pytest.raises(UserError, match="data is not a table"):
        Cifar10.versions[0].read_batch(content, "file")


def test_single_numbers_where_they_are_wanted():
    content = pickle.dumps({"a": np.float64(1.5), "b": np.int32(-3)})
    assert finished(read_plain(content, NumbersOnly(len(content), "x", scalars=True))[0]) == {
        "a": 1.5,
        "b": -3,
    }


PIXELS = VALUES.tobytes()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(PROTOCOLS[2:]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
    st.sampled_from(["set", "drop", "double", "cut"]),
)
def test_damaged_batches_are_read_alike_or_refused(protocol, changes, how):
    names = [b"a%d.png" % n for n in range(4)]
    small = {b"data": VALUES[:1, :64], b"labels": [3], b"filenames": names}
    content = bytearray(pickle.dumps(small, protocol))
    first = bytes(content).find(PIXELS[:64]) if protocol > 2 else len(content)
    outside = [n for n in range(len(content)) if not first <= n < first + 64]
    for place, value in changes:
        at = outside[place % len(outside)]
        if how == "set":
            content[at] = value
        elif how == "cut":
            del content[at:]
            break
        else:
            content[at : at + 1] = b"" if how == "drop" else content[at : at + 1] * 2
            break
    try:
        found = read_numbers(bytes(content), "file")
    except UserError:
        return
    if isinstance(found, dict) and isinstance(found.get(b"data"), np.ndarray) and protocol > 2:
        assert found[b"data"].tobytes() == PIXELS[:64]
