"""A file of another kind in the place of weights is named, so that the user can fix it."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import traced
from torch import nn

from krscale.errors import UserError
from krscale.models.file_kinds import kind_of_file
from krscale.models.torch_files import read_torch


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def saved() -> bytes:
    content = io.BytesIO()
    torch.save(network().state_dict(), content)
    return content.getvalue()


def script(path: Path) -> None:
    traced(network(), torch.zeros(2, 3)).save(str(path))


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(network(), (torch.zeros(2, 3),)), path)


def arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.zeros(3))


def array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.pth", saved())


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("weights.pth")
        member.size = len(saved())
        archive.addfile(member, io.BytesIO(saved()))


KINDS = {
    "a TorchScript program; save the weights alone: torch.save(torch.jit.load": script,
    "an exported program; save the weights alone: torch.save(torch.export.load": exported,
    "arrays of numpy": arrays,
    "an array of numpy": array,
    "an archive; unpack it first.": zipped,
    "an archive; unpack it": tarred,
    "compressed; unpack it first": lambda path: path.write_bytes(gzip.compress(saved())),
    "a web page": lambda path: path.write_text("\ufeff\n <!doctype html><html></html>", "utf-8"),
    "an answer in XML": lambda path: path.write_text("<?xml version='1.0'?><Error/>"),
    "JSON; the weights are in another file": lambda path: path.write_text('{"weight_map": {}}'),
    "an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(999)),
    "a protocol buffer": lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(99)),
}


@pytest.mark.parametrize("said", KINDS)
@pytest.mark.parametrize("name", ["teacher.pt", "teacher.bin", "teacher"])
def test_a_file_of_another_kind_is_called_one(said: str, name: str, tmp_path: Path) -> None:
    KINDS[said](tmp_path / name)
    with pytest.raises(UserError) as error:
        read_torch(tmp_path / name, "teacher.weights: ")
    text = str(error.value)
    place = f"teacher.weights: {tmp_path / name}"
    assert text.startswith(f"{place}: not a readable PyTorch file: it is ")
    assert said in text
    assert len(text.splitlines()) == 1


def test_what_is_none_of_them_is_not_guessed_at(tmp_path: Path) -> None:
    for content in (saved(), b"", b"P", b"PK", b"PK\x03\x04", bytes(300), b"\xff" * 300):
        (tmp_path / "w").write_bytes(content)
        assert kind_of_file(tmp_path / "w") == ""
