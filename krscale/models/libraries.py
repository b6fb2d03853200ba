"""Networks of other libraries: `timm:NAME`, `torchvision:NAME` and `hf:FOLDER`.

Pretrained weights are loaded only if a network is built for use. They are not loaded on meta
tensors, where only shapes are needed, or for students that get their weights from a file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krscale.errors import UserError, unknown_name
from krscale.foreign import user_path
from krscale.models.foreign import located
from krscale.models.torch_files import only_weights, refuse_foreign

Build = Callable[..., nn.Module]
"""Builds a network from `num_classes`, `in_channels`, `fresh` and its options."""
_WEIGHTS = ("pretrained", "weights", "checkpoint_path")
"""Options that load weights, in timm, torchvision and often in the user's own networks."""


def library_builder(name: str, where: str) -> Build | None:
    """Return the builder of a network of another library; None for other kinds of names.

    Raises:
        UserError: If the library is missing, or has no such network.
    """
    kind, separator, rest = name.partition(":")
    if not separator or kind not in LIBRARIES:
        return None
    return LIBRARIES[kind](rest, where)


def is_pretrained(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether a network is built with weights that were trained elsewhere."""
    if name.startswith("hf:"):
        return bool(options.get("pretrained", True))
    return any(options.get(name) for name in _WEIGHTS)


def is_of_library(name: str) -> bool:
    """Return whether a network is from a library."""
    return name.partition(":")[0] in LIBRARIES


def reads_files(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether a library builds a network from the user's files, which may change."""
    return name.startswith("hf:") or bool(options.get("checkpoint_path"))


def _timm(name: str, where: str) -> Build:
    """Return a function that builds the network `name` of the timm library.

    Options go to `timm.create_model`, e.g. `{pretrained = true, drop_rate = 0.1}`. Weights are
    loaded by `pretrained` or by `checkpoint_path`.
    """
    timm = _import_library("timm", "vision", "timm:NAME", where)
    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models(), f"{where}.model")

    def build(num_classes: int, in_channels: int, fresh: bool, **options: Any) -> nn.Module:
        if fresh:
            options = {name: value for name, value in options.items() if name not in _WEIGHTS}
        # timm unpickles the file that this option names.
        setting = f"{where}.options.checkpoint_path"
        file = user_path(str(options.get("checkpoint_path") or ""), setting)
        if file.is_file() and file.suffix not in (".safetensors", ".npz"):
            refuse_foreign(file, f"{setting}: ")
        with _explained("timm", name, options, where):
            model: nn.Module = timm.create_model(
                name, num_classes=num_classes, in_chans=in_channels, **options
            )
        return model

    return build


def _torchvision(name: str, where: str) -> Build:
    """Return a function that builds the classifier `name` of torchvision.

    Options go to torchvision's builder; `pretrained = true` loads its default weights, without
    those of the head if its number of classes differs.
    """
    models = _import_library("torchvision", "vision", "torchvision:NAME", where).models
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known, f"{where}.model")

    def build(num_classes: int, in_channels: int, fresh: bool, **options: Any) -> nn.Module:
        pretrained, weights = options.pop("pretrained", False), options.pop("weights", None)
        chosen = weights or ("DEFAULT" if pretrained else None)
        with _explained("torchvision", name, options, where):
            if name in ("googlenet", "inception_v3"):
                options = _of_inception(chosen is not None) | options
            model: nn.Module = models.get_model(
                name, weights=None, num_classes=num_classes, **options
            )
            if chosen and not fresh:
                state = models.get_model_weights(name)[chosen].get_state_dict(check_hash=True)
                _load_all_but_head(model, state, f"torchvision:{name}", where)
        if chosen:  # how its training images were prepared (`krscale.models.metadata`)
            shown = models.get_model_weights(name)[chosen].transforms()
            names = ("mean", "std", "crop_size", "interpolation")
            # As a module, the transforms would become a part of the network.
            said = {key: getattr(shown, key, None) for key in names}
            model.transforms = said  # type: ignore[assignment]
        return _with_channels(model, in_channels, chosen is not None, where)

    return build


def _of_inception(pretrained: bool) -> dict[str, Any]:
    """Return the options that torchvision sets for these weights, without auxiliary classifiers.

    Nothing here trains these, so they would only add to the number of parameters.
    """
    normalised_otherwise = {"transform_input": True} if pretrained else {}
    return {"init_weights": not pretrained, "aux_logits": False, **normalised_otherwise}


def _hf(folder: str, where: str) -> Build:
    """Return a function that builds the image classifier in a folder that transformers wrote.

    The folder holds `config.json` and `model.safetensors`, as `save_pretrained` writes them.
    Nothing is downloaded, and no code from the folder runs.
    """
    path = user_path(folder, f"{where}.model")
    if not (path / "config.json").is_file():
        raise UserError(
            f"{where}.model: {path} is not the folder of a transformers model: it has no "
            "config.json. Write one with model.save_pretrained(FOLDER)."
        )
    transformers = _import_library("transformers", "hf", "hf:FOLDER", where)

    def build(
        num_classes: int,
        in_channels: int,
        fresh: bool,
        pretrained: bool = True,
        new_head: bool = False,
        **options: Any,
    ) -> nn.Module:
        config = _hf_config(transformers, path, options, where)
        _check_hf(config, path, num_classes, in_channels, pretrained and not new_head, where)
        if config.num_labels != num_classes:
            config.num_labels = num_classes
        auto = transformers.AutoModelForImageClassification
        with _explained("transformers", str(path), options, where), _no_bars(transformers):
            if not fresh and pretrained:
                return _hf_pretrained(auto, path, config, new_head, where)
            model: nn.Module = auto.from_config(config, trust_remote_code=False)
        return model

    return build


LIBRARIES: dict[str, Callable[[str, str], Build]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hf,
}
"""Libraries by the part of the name before the colon."""


def _import_library(package: str, extra: str, form: str, where: str) -> Any:
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError, AttributeError) as error:
        # RuntimeError, AttributeError: a torchvision that was built for another version of torch.
        raise UserError(
            f"{where}.model: models written '{form}' need {package}, which cannot be imported "
            f"({type(error).__name__}: {error}). Install it with pip install 'krscale[{extra}]'"
            + (
                ", with a torchvision that matches the installed torch."
                if extra == "vision"
                else "."
            )
        ) from error


@contextmanager
def _no_bars(transformers: Any) -> Iterator[None]:
    """Keep transformers from showing a progress bar for every network that is built."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class _explained:  # noqa: N801 - reads as a statement where it is used
    """Turn errors that a library raises while building a network into a helpful `UserError`."""

    def __init__(self, library: str, name: str, options: Mapping[str, Any], where: str) -> None:
        self.text = f"{where}.options: {library} cannot build {name!r} with {sorted(options)}"

    def __enter__(self) -> None:
        self.loading = only_weights()
        self.loading.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.loading.__exit__(None, None, None)
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise UserError(f"{self.text}: {located(error)}") from error


def _load_all_but_head(
    model: nn.Module, state: Mapping[str, torch.Tensor], name: str, where: str
) -> None:
    """Load weights, except tensors that differ only in the first dimension, the classes."""
    own = model.state_dict()
    misfits = [key for key in own if key not in state or state[key].shape != own[key].shape]
    strange = [
        key for key in misfits if key not in state or state[key].shape[1:] != own[key].shape[1:]
    ]
    if strange:
        raise UserError(
            f"{where}.options: the pretrained weights of {name} do not fit: "
            f"{', '.join(strange[:8])}."
        )
    model.load_state_dict({key: state[key] for key in own if key not in misfits}, strict=False)


def _with_channels(model: nn.Module, in_channels: int, pretrained: bool, where: str) -> nn.Module:
    """Replace a network's first convolution, of 3 channels, by one that takes `in_channels`."""
    if in_channels == 3:
        return model
    convolutions = (pair for pair in model.named_modules() if isinstance(pair[1], nn.Conv2d))
    path, first = next(convolutions)
    assert isinstance(first, nn.Conv2d)  # noqa: S101 - for mypy
    if pretrained:
        raise UserError(
            f"{where}.options: pretrained weights of torchvision read 3 channels, the images have "
            f"{in_channels}. timm's networks take any number of channels, pretrained too."
        )
    parent, _, leaf = path.rpartition(".")
    other = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    model.get_submodule(parent).add_module(leaf, other)
    return model


def _hf_config(transformers: Any, path: Path, options: Mapping[str, Any], where: str) -> Any:
    """Return the configuration of a folder with the options applied; refuse unknown ones."""
    with _explained("transformers", str(path), options, where):
        config, unknown = transformers.AutoConfig.from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=False,
            return_unused_kwargs=True,
            **options,
        )
    if option := next((name for name in options if name in unknown), None):
        allowed = ("pretrained", "new_head", *config.to_dict())
        raise unknown_name(f"option of hf:{path}", option, allowed, f"{where}.options")
    return config


def _hf_pretrained(auto: Any, path: Path, config: Any, new_head: bool, where: str) -> nn.Module:
    """Return the network with the weights of its folder, in fp32."""
    _require_safetensors(path, where)
    model: nn.Module
    model, found = auto.from_pretrained(
        path,
        config=config,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=new_head,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if found["missing_keys"] and not new_head:  # transformers would initialise them randomly
        raise UserError(
            f"{where}.model: {path} lacks weights: {', '.join(sorted(found['missing_keys']))}. "
            f"{where}.options = {{ new_head = true }} takes the others."
        )
    return model


def _check_hf(
    config: Any, path: Path, num_classes: int, in_channels: int, keeps_head: bool, where: str
) -> None:
    channels = getattr(config, "num_channels", in_channels)
    if channels != in_channels:
        raise UserError(
            f"{where}.model: {path} reads images of {channels} channels, the data have "
            f"{in_channels}."
        )
    if keeps_head and config.num_labels != num_classes:
        raise UserError(
            f"{where}.model: the classifier of {path} knows {config.num_labels} classes, the data "
            f"have {num_classes}. {where}.options = {{ new_head = true }} gives it a new, untrained"
            " one; { pretrained = false } leaves out all of its weights."
        )


def _require_safetensors(path: Path, where: str) -> None:
    names = ("model.safetensors", "model.safetensors.index.json")
    if not any((path / name).is_file() for name in names):
        found = ", ".join(sorted(p.name for p in path.glob("*.bin"))) or "no weights"
        raise UserError(
            f"{where}.model: {path} has no model.safetensors ({found}). Files that can hold code "
            "are not read; write it anew with model.save_pretrained(FOLDER)."
        )
