import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krscale.config import DataConfig
from krscale.data.reading import unpacking
from krscale.data.reading.unpacking import read_members, refuse_bomb
from krscale.data.sources.cifar import Cifar10
from krscale.data.sources.idx import Idx
from krscale.data.sources.numpy_files import NumpyFiles
from krscale.errors import UserError

MAX = 2**16


def silent(done, total):
    pass


def member(name, content=b"", **changes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def tar(path, *members, pack=bytes, form=tarfile.PAX_FORMAT):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(pack(written.getvalue()))
    return path


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_files_are_found_in_any_folder(pack, form, tmp_path):
    members = [member("a/b/one", b"1"), member("two", b"22"), member("x/three", b"333")]
    path = tar(tmp_path / "a.tar", *members, pack=pack, form=form)
    assert read_members(path, {"one", "two", "four"}, MAX) == {"one": b"1", "two": b"22"}


def test_names_that_lead_outside_write_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    outside = tmp_path / "outside"
    path = tar(tmp_path / "in/a.tar", member("../outside", b"1"), member(str(outside), b"2"))
    assert read_members(path, {"outside"}, MAX) == {"outside": b"2"}
    assert not outside.exists()


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_are_not_followed(kind, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    link = member("one", type=kind, linkname=str(tmp_path / "secret"))
    assert read_members(tar(tmp_path / "a.tar", link), {"one"}, MAX) == {}


@pytest.mark.parametrize("name", ["one", "other"])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_bombs_are_not_unpacked(pack, name, tmp_path):
    path = tar(tmp_path / "a.tar", member(name, bytes(2**25)), pack=pack)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.tar: not an archive of this source, but too large"):
        read_members(path, {"one"}, MAX)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_more_files_than_any_source_has(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "_MAX_MEMBERS", 3)
    path = tar(tmp_path / "a.tar", *(member(f"{n}") for n in range(5)))
    with pytest.raises(UserError, match="more than 3 files"):
        read_members(path, {"one"}, MAX)


def test_a_file_that_says_it_is_larger_than_the_archive(tmp_path):
    """A sparse file of GNU tar states a large size but has hardly any bytes."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
    sparse = member("one", b"0\n".ljust(512, b"\0"), pax_headers=headers)
    with pytest.raises(UserError, match=r"one has 1,099,511,627,776 bytes"):
        read_members(tar(tmp_path / "a.tar", sparse), {"one"}, MAX)
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "many"}
    sparse = member("one", b"0\n".ljust(512, b"\0"), pax_headers=headers)
    with pytest.raises(UserError, match="not a readable archive"):
        read_members(tar(tmp_path / "b.tar", sparse), {"one"}, MAX)


def test_heads_of_heads_of_heads(tmp_path):
    """tarfile recurses when it reads a header that precedes another header."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 0
    (tmp_path / "a.tar").write_bytes(info.tobuf() * 3000)
    with pytest.raises(UserError, match="not a readable archive"):
        read_members(tmp_path / "a.tar", {"one"}, 2**24)


def test_a_file_of_cifar_larger_than_any(tmp_path, monkeypatch):
    monkeypatch.setattr("krscale.data.sources.cifar._MAX_FILE", 100)
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]
    for name in names:
        (tmp_path / name).write_bytes(b"0" * 101)
    with pytest.raises(UserError, match=r"data_batch_1: 101 bytes; files of this source"):
        Cifar10(DataConfig(source="cifar10", path=str(tmp_path))).read(silent)


def test_what_images_unpack_to():
    refuse_bomb("a", 1000, 2**28)  # small
    refuse_bomb("a", 2**30, 2**30 * 200)
    with pytest.raises(UserError, match=r"^a: 1,000 bytes that unpack to 268,435,457"):
        refuse_bomb("a", 1000, 2**28 + 1)


def npz(path, *, shape=None, size=6, kind="|u1", **labels):
    """Write an archive whose image array has this shape in its header."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": kind, "fortran_order": False, "shape": shape or (size,)}
        )
        archive.writestr("images.npy", head.getvalue() + bytes(size))
        written = io.BytesIO()
        np.save(written, labels.get("labels", np.arange(6)))
        archive.writestr("labels.npy", written.getvalue())
    return NumpyFiles(DataConfig(source="numpy", path=str(path)))


SHAPES = [(2**40, 2, 2), (7, 1, 1), (2, 1, 1), (2**62, 2**62, 2), (-6, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_npz_array_of_another_size_than_it_says(shape, tmp_path):
    with pytest.raises(UserError, match=r"a\.npz: images: not a readable array"):
        npz(tmp_path / "a.npz", shape=shape).read(silent)


def test_an_npz_array_of_any_number_of_nothings(tmp_path):
    with pytest.raises(UserError, match="which have no bytes"):
        npz(tmp_path / "a.npz", shape=(2**40,), size=0, kind="<U0").read(silent)


def test_npz_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "_SMALL", 2**16)
    with pytest.raises(UserError, match=r"a\.npz: images: .* that unpack to"):
        npz(tmp_path / "a.npz", shape=(2**20, 4, 4), size=2**24).read(silent)


def test_npz_with_a_password(tmp_path):
    source = npz(tmp_path / "a.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for place in (content.find(b"PK\x03\x04") + 6, content.find(b"PK\x01\x02") + 8):
        content[place] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="not a readable array"):
        source.read(silent)


def idx(path, shape, content):
    head = b"\0\0\x08" + bytes([len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    path.write_bytes(gzip.compress(head + content))


def test_idx_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "_SMALL", 2**16)
    idx(tmp_path / "train-labels-idx1-ubyte.gz", (6,), bytes(6))
    source_path = tmp_path / "train-images-idx3-ubyte.gz"
    idx(source_path, (2**16, 16, 16), bytes(2**24))
    source = Idx(DataConfig(source="idx", path=str(tmp_path)))
    with pytest.raises(UserError, match="that unpack to 16,777,216"):
        source.read(silent)
    idx(source_path, (6, 2, 2), bytes(2**24))
    with pytest.raises(UserError, match=r"25 values or more, its head says \[6, 2, 2\]"):
        source.read(silent)
    for shape in ((2**32 - 1,) * 3, (0, 2**32 - 1, 2**32 - 1)):
        idx(source_path, shape, b"")
        with pytest.raises(UserError, match="train-images"):
            source.read(silent)


CHANGES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=3)


def changed(content, changes):
    content = bytearray(content)
    for place, value in changes:
        content[place % len(content)] = value
    return bytes(content)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_damaged_archives_are_read_or_refused(form, tmp_path):
    headers = {"comment": "x" * 30} if form == tarfile.PAX_FORMAT else {}
    named = member("a" * 120, b"1", pax_headers=headers)
    content = tar(tmp_path / "a.tar", named, member("one", b"2" * 700), form=form).read_bytes()

    @settings(max_examples=100, deadline=None)
    @given(CHANGES)
    def check(changes):
        (tmp_path / "a.tar").write_bytes(changed(content, changes))
        with contextlib.suppress(UserError):
            read_members(tmp_path / "a.tar", {"one"}, MAX)

    check()


def test_damaged_npz_files_are_read_or_refused(tmp_path):
    npz(tmp_path / "a.npz", shape=(6, 2, 2), size=24)
    content = (tmp_path / "a.npz").read_bytes()

    @settings(max_examples=150, deadline=None)
    @given(CHANGES)
    def check(changes):
        (tmp_path / "a.npz").write_bytes(changed(content, changes))
        with contextlib.suppress(UserError):
            NumpyFiles(DataConfig(source="numpy", path=str(tmp_path / "a.npz"))).read(silent)

    check()
