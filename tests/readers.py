"""A small file of every format that krscale reads, and what reads it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from mutations import Mutate, mutate_bytes, mutate_json, mutate_toml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from krscale.config import DataConfig, FilesConfig, load
from krscale.data import prepare_data
from krscale.data.check import check_data
from krscale.search.space.space import load_space
from krscale.training.checkpoint import load_checkpoint, load_weights, save_checkpoint

NUM, SIDE = 24, 4


@dataclass(frozen=True)
class Reader:
    """A format: `write` fills a folder, `read` reads it, and `mutate` changes one of its files."""

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    mutate: Mutate = mutate_bytes
    pattern: str = "**/*"
    """Pattern of the files that are changed."""


def _data(source: str, path: str = "", **files: object) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        config = DataConfig(
            source=source, path=str(folder / path), files=FilesConfig(**files), skip_unreadable=True
        )
        check_data(config, lambda done, total: None)
        prepare_data(config, folder.parent / "cache")

    return read


def _pixels(side: int = SIDE, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM, channels, side, side), dtype=np.uint8)


def _labels() -> np.ndarray:
    return np.arange(NUM) % 3


def _encoded(form: str) -> list[bytes]:
    found = []
    for pixels in _pixels():
        written = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(written, form)
        found.append(written.getvalue())
    return found


def write_images(folder: Path) -> None:
    forms = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
    by_form = {form: _encoded(form) for form in forms}
    for number, label in enumerate(_labels()):
        form = forms[number % len(forms)]
        path = folder / f"class-{label}" / f"{number}.{form.lower()}"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(by_form[form][number])


def write_list(folder: Path) -> None:
    write_images(folder)
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*"))
    rows = [f"{file},{file.split('/')[0]},train" for file in files]
    (folder / "list.csv").write_text("\n".join(["path,label,split", *rows, ""]))
    table = pa.table({"path": files, "label": [file.split("/")[0] for file in files]})
    pq.write_table(table, folder / "list.parquet")


def write_parquet(folder: Path) -> None:
    table = pa.table({"image": [{"bytes": c} for c in _encoded("PNG")], "label": _labels()})
    info = json.dumps({"info": {"features": {"label": {"names": ["a", "b", "c"]}}}})
    for name in ("train-0.parquet", "train-1.parquet"):
        pq.write_table(table.replace_schema_metadata({"huggingface": info}), folder / name)


def write_hf_disk(folder: Path) -> None:
    table = pa.table({"image": [{"bytes": c} for c in _encoded("PNG")], "label": _labels()})
    file = str(folder / "data.arrow")
    with pa.OSFile(file, "wb") as opened, pa.ipc.new_stream(opened, table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "x", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    names = {"names": ["a", "b", "c"], "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": names}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def write_numpy(folder: Path) -> None:
    for name, values in {
        "train_images": _pixels(), "train_labels": _labels(), "test_images": _pixels()[:9] ^ 1,
        "test_labels": _labels()[:9], "classes": np.array(["a", "b", "c"]),
    }.items():  # fmt: skip
        np.save(folder / f"{name}.npy", values)


def write_npz(folder: Path) -> None:
    np.savez_compressed(folder / "a.npz", images=_pixels(), labels=_labels())
    np.savez(folder / "b.npz", images=_pixels(), labels=_labels())


def write_idx(folder: Path) -> None:
    for name, start in (("train", 0), ("t10k", 1)):
        images, labels = _pixels(28, 1) ^ start, _labels().astype(np.uint8)
        head = struct.pack(">4I", 0x803, NUM, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        packed = gzip.compress(struct.pack(">2I", 0x801, NUM) + labels.tobytes())
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(packed)


def _cifar_files(binary: bool) -> dict[str, bytes]:
    files = {}
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = (_pixels(32) ^ number)[:6].reshape(6, -1)
        labels = [label % 2 for label in range(6)]
        if binary:
            row = np.concatenate([np.array(labels, np.uint8)[:, None], rows], axis=1)
            files[f"{name}.bin"] = row.tobytes()
        else:
            files[name] = pickle.dumps({b"data": rows, b"labels": labels}, 2)
    files["batches.meta.txt" if binary else "batches.meta"] = (
        b"ant\nbee\n" if binary else pickle.dumps({b"label_names": [b"ant", b"bee"]}, 2)
    )
    return files


def write_cifar(folder: Path) -> None:
    for name, content in _cifar_files(False).items():
        (folder / name).write_bytes(content)


def write_cifar_binary(folder: Path) -> None:
    for name, content in _cifar_files(True).items():
        (folder / name).write_bytes(content)


def write_cifar_archive(folder: Path) -> None:
    with tarfile.open(folder / "a.tar.gz", "w:gz", compresslevel=0) as archive:
        for name, content in _cifar_files(False).items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def write_torch(folder: Path) -> None:
    state = _network().state_dict()
    torch.save(state, folder / "a.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "a.ckpt")
    torch.save(state, folder / "a.pth", _use_new_zipfile_serialization=False)


def read_torch_files(folder: Path) -> None:
    for name in ("a.pt", "a.ckpt", "a.pth"):
        load_weights(folder / name, _network(), "teacher.weights")


def write_safetensors(folder: Path) -> None:
    save_file(_network().state_dict(), folder / "a.safetensors", {"krscale": '{"a": 1}'})


EXPERIMENT = """name = "mine"
storage_path = "runs-of-this-test"
[data]
source = "digits"
seed = 3
val_fraction = 0.2
[data.files]
classes = ["a", "b"]
raw_shape = [3, 4, 4]
[views]
num_views = 2
flip = true
[teacher]
model = "resnet"
width = 8
options = {num_blocks = 2}
taps = ["a", "b"]
stage_ends = [2, 3]
[teacher.preprocessing]
mean = [0.5, 0.5, 0.5]
std = 0.5
[student]
model = "resnet"
[[ladder.students]]
name = "small"
model = "resnet"
[store]
top_k = 4
[ladder]
capacities = ["1/16", "0.25"]
[train]
num_epochs = 3
learning_rate = 0.1
schedule = "cosine"
optimizer_options = {momentum = 0.9}
[distill]
method = "kr"
capacity = "1/16"
granularity = 3
[search]
methods = ["plain", "kr"]
space = "kr"
trials_per_size = 4
objectives = ["val/accuracy"]
[tracking]
enabled = false
uri = "http://a:b@localhost:5000"
[cluster]
address = "local"
num_cpus = 2
"""
_FROM_2 = 'when = {"distill.granularity" = {low = 2}}'
SPACE = f"""[common]
"train.learning_rate" = {{type = "float", low = 1e-3, high = 0.3, log = true}}
"train.weight_decay" = {{type = "float", low = 1e-5, high = 1e-2, log = true}}
"train.optimizer" = {{type = "categorical", choices = ["sgd", "adamw"]}}
[kr]
"distill.granularity" = {{type = "int", low = 1, high = "num_taps"}}
"distill.sparsity" = {{type = "float", low = 0.0, high = 0.9, step = 0.1, {_FROM_2}}}
"distill.temperature" = {{type = "categorical", choices = [1.0, 4.0], {_FROM_2}}}
"""


def write_experiment(folder: Path) -> None:
    (folder / "a.toml").write_text(EXPERIMENT)


def write_space(folder: Path) -> None:
    (folder / "space.toml").write_text(SPACE)


def read_space(folder: Path) -> None:
    space = f"search.space={folder / 'space.toml'}"
    load_space(load(None, [space, "search.methods=['plain','kr']"]), 7)


STRANGERS = {
    "experiment": Reader(write_experiment, lambda folder: load(folder / "a.toml"), mutate_toml),
    "space": Reader(write_space, read_space, mutate_toml),
    "images": Reader(write_images, _data("image_folder", image_size=4)),
    "csv list": Reader(write_list, _data("image_list", "list.csv"), pattern="list.csv"),
    "parquet list": Reader(write_list, _data("image_list", "list.parquet"), pattern="list.parquet"),
    "parquet": Reader(write_parquet, _data("parquet")),
    "hf_disk": Reader(write_hf_disk, _data("hf_disk"), pattern="*.arrow"),
    "hf_disk's records": Reader(write_hf_disk, _data("hf_disk"), mutate_json, "*.json"),
    "npy": Reader(write_numpy, _data("numpy")),
    "npz": Reader(write_npz, _data("numpy", "a.npz"), pattern="a.npz"),
    "npz, stored": Reader(write_npz, _data("numpy", "b.npz"), pattern="b.npz"),
    "idx": Reader(write_idx, _data("idx")),
    "cifar": Reader(write_cifar, _data("cifar10")),
    "cifar, binary": Reader(write_cifar_binary, _data("cifar10")),
    "cifar, archive": Reader(write_cifar_archive, _data("cifar10", "a.tar.gz")),
    "torch": Reader(write_torch, read_torch_files),
    "safetensors": Reader(
        write_safetensors, lambda folder: load_weights(folder / "a.safetensors", _network(), "w")
    ),
    "checkpoint": Reader(
        lambda folder: save_checkpoint(folder, {"a": torch.ones(3), "b": {"c": [1, 2.5, "d"]}}),
        load_checkpoint,
    ),
}  # fmt: skip
