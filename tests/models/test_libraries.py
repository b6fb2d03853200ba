"""Real classifiers of torchvision, timm and transformers, as teacher and student."""

from functools import partial
from pathlib import Path

import pytest
import torch
from libraries import library
from torch import nn

from krscale.config import Experiment, load
from krscale.errors import UserError
from krscale.knowledge.taps import TappedModel, settle_layouts
from krscale.models import build_model, is_pretrained
from krscale.models.blocks import list_blocks
from krscale.models.capacity import count_flops
from krscale.models.probing import build_for_shapes, check_network
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.setup.build import Assets, build_training, trial_experiment
from krscale.setup.prepare import prepare

# krscale cannot fix deprecations in these libraries and torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def build(name: str, shape: tuple[int, int, int], **options: object) -> nn.Module:
    make = partial(
        build_model, name, num_classes=11, in_channels=shape[0], width=1, options=options,
        where="teacher",
    )  # fmt: skip
    model = build_for_shapes(make, shape)
    check_network(model, 11, shape, "teacher")
    assert next(model.parameters()).is_meta, "it costs nothing to look at"
    return model


CASES = [
    ("torchvision:resnet18", (1, 32, 32), "layer2.0", "channels_first"),
    ("torchvision:googlenet", (3, 64, 64), "inception4a", "channels_first"),
    ("torchvision:swin_t", (3, 64, 64), "features.3.0", "channels_last"),
    ("torchvision:convnext_tiny", (3, 32, 32), "features.3.0", "channels_first"),
    ("torchvision:vit_b_16", (3, 224, 224), "encoder.layers.encoder_layer_3", "channels_last"),
    ("timm:resnet18", (1, 32, 32), "layer2.0", "channels_first"),
    (
        "timm:swin_tiny_patch4_window7_224", (3, 224, 224), "layers.1.blocks.0",
        "channels_last",
    ),
    ("timm:vit_tiny_patch16_224", (3, 224, 224), "blocks.3", "channels_last"),
    ("timm:convnext_atto", (1, 32, 32), "stages.1.blocks.0", "channels_first"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "tap", "layout"), CASES)
def test_classifiers_run_and_their_taps_are_told_apart(
    name: str, shape: tuple[int, int, int], tap: str, layout: str
) -> None:
    library(name.partition(":")[0])
    model = build(name, shape)
    assert count_flops(model, shape) > 0
    blocks = {block.path: block for block in list_blocks(model, shape)}
    assert blocks[tap].layout == layout
    settle_layouts(model, (tap,), shape)
    feature = TappedModel(model.eval(), (tap,))(torch.empty(2, *shape, device="meta")).features[0]
    channels = blocks[tap].shape[-1] if layout == "channels_last" else blocks[tap].shape[0]
    assert feature.shape[1 if feature.ndim == 4 else 2] == channels


def test_auxiliary_classifiers_are_left_out_unless_they_are_asked_for() -> None:
    library("torchvision")
    alone = build("torchvision:googlenet", (3, 64, 64))
    with_others = build("torchvision:googlenet", (3, 64, 64), aux_logits=True)
    assert not any(name.startswith("aux") for name in alone.state_dict())
    images = torch.empty(2, 3, 64, 64, device="meta")
    assert with_others.train()(images).shape == (2, 11), "the logits of three outputs"


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_unknown_names_name_the_nearest(kind: str) -> None:
    library(kind)
    with pytest.raises(UserError, match=rf"unknown {kind} model 'resnet81'\. Did you mean 'resne"):
        build(f"{kind}:resnet81", (3, 32, 32))


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_unknown_options_are_refused(kind: str) -> None:
    library(kind)
    with pytest.raises(UserError, match=rf"options: {kind} cannot build 'resnet18' .*drop_rat"):
        build(f"{kind}:resnet18", (3, 32, 32), drop_rat=0.1)


def test_what_krscale_sets_is_no_option() -> None:
    library("timm")
    with pytest.raises(UserError, match=r"teacher\.options: 'num_classes' is set by krscale"):
        build("timm:resnet18", (3, 32, 32), num_classes=3)


def test_images_that_a_network_does_not_take() -> None:
    library("torchvision")
    with pytest.raises(UserError, match=r"does not run on images of shape \[3, 32, 32\].*Wrong"):
        build("torchvision:vit_b_16", (3, 32, 32))


def test_pretrained_weights_without_their_head() -> None:
    """No weights are downloaded: the state dict of another head stands in for them."""
    library("torchvision")
    from krscale.models.libraries import _load_all_but_head

    with_other_head = build_model(
        "torchvision:resnet18", num_classes=1000, in_channels=3, width=1, options={}
    ).state_dict()
    model = build_model("torchvision:resnet18", num_classes=11, in_channels=3, width=1, options={})
    _load_all_but_head(model, with_other_head, "torchvision:resnet18", "teacher")
    state = model.state_dict()
    assert torch.equal(state["layer1.0.conv1.weight"], with_other_head["layer1.0.conv1.weight"])
    assert state["fc.weight"].shape == (11, 512)


def test_a_file_of_timm_is_loaded_unless_other_weights_take_its_place(tmp_path: Path) -> None:
    library("timm")
    make = partial(
        build_model, "timm:test_resnet", num_classes=11, in_channels=3, width=1, where="student"
    )  # fmt: skip
    kept = make(options={})
    options = {"checkpoint_path": str(tmp_path / "kept.pt")}
    with pytest.raises(UserError, match=r"student\.options: timm cannot build 'test_resnet'"):
        make(options=options)
    fresh = make(options=options, fresh=True)
    torch.save(kept.state_dict(), tmp_path / "kept.pt")
    weight = next(kept.parameters())
    assert torch.equal(next(make(options=options).parameters()), weight)
    assert not torch.equal(next(fresh.parameters()), weight)
    assert is_pretrained("timm:test_resnet", options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT for digits, saved by transformers."""
    transformers = library("transformers")
    path = tmp_path_factory.mktemp("hf") / "vit"
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=32, num_labels=10,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(path)
    return path


def hf(folder: Path, num_classes: int = 10, **options: object) -> nn.Module:
    return build_model(
        f"hf:{folder}", num_classes=num_classes, in_channels=1, width=1, options=options,
        where="teacher",
    )  # fmt: skip


def test_a_folder_gives_its_weights_and_logits(folder: Path) -> None:
    transformers = library("transformers")
    kept = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(hf(folder).eval()(images), kept(images).logits)
    assert not torch.equal(hf(folder, pretrained=False).eval()(images), kept(images).logits)
    assert is_pretrained(f"hf:{folder}", {})
    assert not is_pretrained(f"hf:{folder}", {"pretrained": False})


def test_a_head_of_other_classes_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"knows 10 classes, the data have 7.*new_head = true"):
        hf(folder, 7)
    assert hf(folder, 7, new_head=True)(torch.randn(2, 1, 8, 8)).shape == (2, 7)


def test_options_of_a_folder_are_those_of_its_config(folder: Path) -> None:
    assert hf(folder, hidden_dropout_prob=0.5).config.hidden_dropout_prob == 0.5
    with pytest.raises(UserError, match=r"'hiden_dropout_prob'\. Did you mean 'hidden_dropout_"):
        hf(folder, hiden_dropout_prob=0.5)


def test_a_folder_without_a_head_is_not_filled_at_random(folder: Path, tmp_path: Path) -> None:
    transformers = library("transformers")
    transformers.ViTModel.from_pretrained(folder).save_pretrained(tmp_path / "body")
    with pytest.raises(UserError, match=r"lacks weights: classifier\.bias, classifier\.weight"):
        hf(tmp_path / "body")
    hf(tmp_path / "body", new_head=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"it has no config\.json"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"no model\.safete"),
        (lambda f: (f / "config.json").write_text('{"model_type": "vt"}'), r"cannot build"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 9), r"cannot build"),
    ],
)
def test_a_folder_that_is_none(folder: Path, tmp_path: Path, change, message: str) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy)
    with pytest.raises(UserError, match=message):
        hf(copy)


def test_code_of_a_folder_does_not_run(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {
        "AutoConfig": "evil.Evil", "AutoModelForImageClassification": "evil.Evil"}}  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot build"):
        hf(copy)
    assert not (tmp_path / "owned").exists()


def test_from_a_folder_to_students_of_other_libraries(folder: Path, tmp_path: Path) -> None:
    """A transformers teacher with its weights teaches a timm and a torchvision student."""
    for name in ("timm", "torchvision"):
        library(name)
    students = (
        "ladder.students=[{name='timm', model='timm:test_resnet', taps=['layer1.0', 'layer2.0']}, "
        "{name='vision', model='torchvision:resnet18', taps=['layer1.0']}]"
    )
    chosen: Experiment = load(None, [
        f"storage_path={tmp_path}", f"teacher.model=hf:{folder}", "teacher.options={}",
        "teacher.weights=own", "teacher.allow_poor=true",
        "teacher.taps=['vit.layers.0', 'vit.layers.1']",
        "views.num_views=1", "train.num_epochs=1", students,
    ])  # fmt: skip
    with Progress(quiet=True, planned={}) as progress:
        prepared = prepare(chosen, progress)
    for name in ("timm", "vision"):
        trial = trial_experiment(chosen, "kr", {"distill.capacity": name}, 0)
        training = build_training(trial, Assets.open(prepared), 1, Workers.alone())
        training.rehearse()
