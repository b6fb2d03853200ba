import argparse
import collections
import contextlib
import io
import os
import pickle
import struct
import sys
import tempfile
import zipfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from krscale.errors import UserError
from krscale.files import read_json, sha256, write_json
from krscale.models.libraries import library_builder
from krscale.models.torch_files import check_torch, only_weights, read_torch
from krscale.pickle_rules import RefusedError
from krscale.training.checkpoint import load_checkpoint, save_checkpoint


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def checkpoint():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [1, 2])
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = "kept"
    return {
        "state_dict": model.state_dict(),
        "parameters": list(model.parameters()),
        "tied": tied().state_dict(),
        "optimizer": optimiser.state_dict(),
        "scheduler": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "counts": collections.Counter("aab"),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "set": {1, 2},
        "bytes": [b"a\xff", bytearray(b"b")],
        "numbers": [True, None, 1.5, 2**70, -3, 1 + 2j],
        "kept": parameter,
        "views": [torch.arange(12.0).view(3, 4).t(), torch.arange(5)[2:], torch.ones(()).expand(9)],
        "empty": torch.empty(0, 5),
        "types": [torch.zeros(2, dtype=t) for t in (torch.bool, torch.half, torch.complex64)],
        "new types": [torch.zeros(2, dtype=t) for t in (torch.uint16, torch.float8_e4m3fn)],
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        None: 1,
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", list(checkpoint()))
def test_what_training_scripts_save_is_read(name, zipped, tmp_path):
    if name == "new types" and not zipped:
        pytest.skip("torch does not read its own older format of these")
    value = checkpoint()[name]
    torch.save({"x": value}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with torch.serialization.safe_globals([argparse.Namespace]):
        expected = torch.load(tmp_path / "w.pt", weights_only=True)
    assert repr(read_torch(tmp_path / "w.pt")) == repr(expected)


BESIDE = {
    "numpy's numbers": [np.float64(95.1), np.float32(1), np.int64(3), np.bool_(True)],
    "numpy's arrays": {"confusion": np.eye(3), "names": np.array(["a", "b"])},
    "paths": [Path("/a/b"), PureWindowsPath("c:/x")],
    "dates": [datetime(2026, 1, 2, tzinfo=UTC), timedelta(1), date(2026, 1, 2)],
    "tables": collections.defaultdict(list, {"loss": [1.0], "accuracy": [np.float64(0.5)]}),
    "arguments": argparse.Namespace(data=Path("/data"), seed=np.int64(1)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_what_scripts_keep_beside_the_weights_is_passed_over(name, zipped, tmp_path, monkeypatch):
    torch.save({"state_dict": {"w": torch.arange(3)}, "beside": BESIDE[name]},
               tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)  # fmt: skip
    for module, made in ((np, "frombuffer"), (np, "dtype")):
        monkeypatch.setattr(module, made, lambda *_: pytest.fail("it is made"))
    found = read_torch(tmp_path / "w.pt", "")
    assert found["state_dict"]["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "forged",
    [b"cnumpy\ndtype\nX\x01\0\0\0O\x85R", b"cdatetime\ndatetime\n(K\x01K\x02tR}X\x01\0\0\0aNsb",
     b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x01\0\0\0O\x85R"
     b"X\x08\0\0\0AAAAAAAA\x86R"],
)  # fmt: skip
def test_nothing_is_made_of_them_whatever_their_arguments(forged, tmp_path):
    """An array of objects would consist of pointers read from the file."""
    found = read_torch(edited(tmp_path / "w.pt", only(forged)))
    assert type(found).__name__ == "Kept"
    assert not vars(found)


@pytest.mark.parametrize("called", ["builtins dict", "builtins list", "numpy frombuffer"])
def test_no_other_name_of_theirs_is_called(called, tmp_path):
    content = b"c" + called.replace(" ", "\n").encode() + b"\n)R"
    with pytest.raises(UserError, match="holds more than tensors"):
        read_torch(edited(tmp_path / "w.pt", only(content)))


def edited(path, change, compression=zipfile.ZIP_STORED, extra=()):
    """Write a state dict, and change its pickle and how it is packed."""
    torch.save({"w": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
        for name, content in extra:
            archive.writestr(f"{next(iter(parts)).partition('/')[0]}/{name}", content)
    return path


def sized(number):
    """Return an edit that changes the number of elements of the storage and of the tensor."""
    return lambda content: content.replace(b"K\x04", b"J" + struct.pack("<i", number))


def only(value, *parts):
    """Return an edit that replaces the pickle."""
    return lambda _: b"\x80\x02" + value + b"."


def called(name, arguments):
    name = name if " " in name else f"torch._utils {name}"
    return only(b"c" + name.replace(" ", "\n").encode() + b"\n" + arguments + b"R")


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
HOOKS = b"\x89ccollections\nOrderedDict\n)R"


def tensor(offset=b"K\x00", size=b"K\x04\x85", stride=b"K\x01\x85", rest=HOOKS):
    arguments = b"(" + STORAGE + offset + size + stride + rest + b"t"
    return called("_rebuild_tensor_v2", arguments)


HUGE = b"\x8a\x06\0\0\0\0\0\x01"
MINUS = b"J\xff\xff\xff\xff"
OF_A_SET = b"(cbuiltins\nset\nctorch\nTensor\n))t"
WITH_A_CLASS = b"(" + STORAGE + b"\x89N}X\x09\0\0\0__class__Nst"
FORGED = {
    "more elements than bytes": sized(5),
    "far more elements than bytes": sized(2**30),
    "fewer than none": sized(-1),
    "a tensor that is longer than its storage": tensor(size=b"K\x05\x85"),
    "a tensor that begins behind its storage": tensor(offset=b"K\x01"),
    "a tensor that begins before its storage": tensor(offset=MINUS),
    "steps backwards": tensor(stride=MINUS + b"\x85"),
    "steps beyond": tensor(stride=b"K\x02\x85"),
    "fewer steps than axes": tensor(stride=b")"),
    "one element a million million times": tensor(size=HUGE + b"\x85", stride=b"K\x00\x85"),
    "a size that is text": tensor(size=b"X\x01\0\0\0a\x85"),
    "hooks": tensor(rest=b"\x89}X\x01\0\0\0aNs"),
    "metadata of another kind": tensor(rest=HOOKS + b"}X\x01\0\0\0aNs"),
    "no storage": called("_rebuild_tensor_v2", b"(NK\x00K\x04\x85K\x01\x85" + HOOKS + b"t"),
    "too few arguments": called("_rebuild_tensor_v2", b"(t"),
    "memory of any size": called("builtins bytearray", HUGE + b"\x85"),
    "memory of any size, as Python 2 says it": called("__builtin__ bytearray", HUGE + b"\x85"),
    "a tensor of any size": called("torch FloatTensor", HUGE + b"\x85"),
    "a storage of any size": called("torch.storage UntypedStorage", HUGE + b"\x85"),
    "a sparse tensor": called("_rebuild_sparse_tensor", b"NN\x86"),
    "a tensor without bytes": called("_rebuild_meta_tensor_no_storage", b")"),
    "a quantised tensor": called("_rebuild_qtensor", b")"),
    "a wrapper": called("_rebuild_wrapper_subclass", b")"),
    "a class of a tensor": called("torch._tensor _rebuild_from_type_v2", OF_A_SET),
    "attributes of Python": called("_rebuild_parameter_with_state", WITH_A_CLASS),
    "another encoding": called("_codecs encode", b"X\x01\0\0\0aX\x05\0\0\0rot13\x86"),
    "another object beside": only(b"(X\x06\0\0\0moduleNNNtQ"),
    "a state of a tensor": only(b"ctorch\nTensor\n)\x81)b"),
    "attributes of a dictionary": only(b"ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsNsb"),
    "a class of arguments": only(b"cargparse\nArgumentParser\n)\x81"),
    "a set of equal hashes": called("builtins set", b"](" + b"K\x01" * 2000 + b"e\x85"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_are_refused_before_torch_reads_them(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    path = edited(tmp_path / "w.pt", FORGED[name])
    with pytest.raises(UserError, match=r"^teacher\.weights: .*w\.pt: (holds more|not a readable)"):
        read_torch(path, "teacher.weights: ")


def test_the_forged_pieces_are_well_formed(tmp_path):
    assert read_torch(edited(tmp_path / "w.pt", tensor())).tolist() == [0, 1, 2, 3]


PACKED = {
    "compressed": {"compression": zipfile.ZIP_DEFLATED},
    "a bomb": {"compression": zipfile.ZIP_DEFLATED, "extra": [("data/1", bytes(2**24))]},
    "a part twice": {"extra": [("data.pkl", b"\x80\x02}.")]},
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", PACKED)
def test_archives_that_torch_does_not_write_are_refused(name, tmp_path):
    path = edited(tmp_path / "w.pt", lambda content: content, **PACKED[name])
    with pytest.raises(UserError, match="not a readable PyTorch file: it"):
        read_torch(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", PACKED)
def test_a_torch_that_cannot_say_sizes_refuses_the_same(name, tmp_path, monkeypatch):
    torchs_own = torch._C.PyTorchFileReader

    class WithoutSizes:  # as torch 2.11 has it
        def __init__(self, path):
            reader = torchs_own(path)
            self.get_all_records, self.get_record = reader.get_all_records, reader.get_record

    monkeypatch.setattr(torch._C, "PyTorchFileReader", WithoutSizes)
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "right.pt")
    check_torch(tmp_path / "right.pt")
    path = edited(tmp_path / "w.pt", lambda content: content, **PACKED[name])
    with pytest.raises(RefusedError):
        check_torch(path)


def test_a_file_behind_other_bytes_is_refused(tmp_path):
    first, second = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.ones(1)}, first)
    torch.save({"b": torch.ones(2)}, second)
    (tmp_path / "w.pt").write_bytes(first.getvalue() + second.getvalue())
    with pytest.raises(UserError, match="not a readable PyTorch file"):
        read_torch(tmp_path / "w.pt")


@pytest.mark.parametrize("forgery", ["the size of the storage", "no bytes follow"])
def test_the_older_format_has_the_same_bounds(forgery, tmp_path):
    torch.save({"w": torch.arange(4.0)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pt").read_bytes()
    if forgery == "no bytes follow":  # the last pickle is the list of keys of storages
        keys = content[content.rfind(b"]q") :].split(b"a.")[0]
        content = content.replace(keys + b"a.", b"].")
    else:
        content = content.replace(b"K\x04N", b"J\0\0\0\x40N")
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"bytes of the tensor|of more bytes"):
        read_torch(tmp_path / "w.pt")


class Runs:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_never_runs(protocol, zipped, tmp_path):
    torch.save(
        {"w": Runs(tmp_path / "canary")},
        tmp_path / "w.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=r"holds more than tensors.*it asks for \w+\.mkdir"):
        read_torch(tmp_path / "w.pt")
    assert not (tmp_path / "canary").exists()


def test_a_library_that_would_unpickle_reads_weights_alone(tmp_path, monkeypatch):
    """timm unpickles the file that `checkpoint_path` names in this way."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"w": Runs(tmp_path / "canary")}, tmp_path / "w.pth")
    with only_weights(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pth", weights_only=False)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ

    def create_model(name, checkpoint_path="", pretrained_cfg=None, **_):
        torch.load(checkpoint_path or pretrained_cfg["file"], weights_only=False)

    timm = SimpleNamespace(create_model=create_model, is_model=lambda name: True)
    monkeypatch.setitem(sys.modules, "timm", timm)
    for options in (
        {"checkpoint_path": str(tmp_path / "w.pth")},
        {"pretrained_cfg": {"file": str(tmp_path / "w.pth")}},
    ):
        build = library_builder("timm:any", "teacher")
        with pytest.raises(UserError, match=r"^teacher\.options"):
            build(num_classes=2, in_channels=3, fresh=False, **options)
    assert not (tmp_path / "canary").exists()


def test_the_checkpoint_of_a_stranger_is_looked_through_too(tmp_path):
    """Its manifest has the right checksum, whatever the file holds."""
    save_checkpoint(tmp_path / "c", {"epoch": 1})
    manifest = tmp_path / "c" / "manifest.json"
    for content in (pickle.dumps(Runs(tmp_path / "canary")), pickle.dumps([1]), b"nothing"):
        state = tmp_path / "c" / "state.pt"
        state.write_bytes(content)
        write_json(manifest, read_json(manifest) | {"files": {state.name: sha256(state)}})
        with pytest.raises(UserError, match=r"state\.pt: (holds more|not a readable)"):
            load_checkpoint(tmp_path / "c")
    assert not (tmp_path / "canary").exists()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_pickles_are_read_or_refused(changes):
    def change(content):
        content = bytearray(content)
        for place, value in changes:
            content[place % len(content)] = value
        return bytes(content)

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UserError):
        read_torch(edited(Path(folder) / "w.pt", change))
