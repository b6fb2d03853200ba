"""Preprocessing metadata of networks and folders, read without the libraries they come from."""

import enum
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from libraries import library
from torch import nn

from krscale.errors import UserError
from krscale.models import build_model
from krscale.models.metadata import HF_FILE, preprocessing_of
from krscale.models.preprocessing import Preprocessing

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def network(**attributes: object) -> nn.Module:
    found = nn.Identity()
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


class Filter(enum.Enum):
    """As torchvision writes interpolations."""

    BICUBIC = "bicubic"


TIMM = {
    "mean": IMAGENET[0], "std": IMAGENET[1], "input_size": (3, 224, 192), "interpolation": "bicubic"
}  # fmt: skip
OF_TIMM = Preprocessing(*IMAGENET, input_size=(224, 192), interpolation="bicubic")


@pytest.mark.parametrize(
    "attributes",
    [
        {"pretrained_cfg": TIMM},
        {"default_cfg": TIMM},
        {"pretrained_cfg": SimpleNamespace(**TIMM), "default_cfg": {"mean": (0,), "std": (1,)}},
        {"transforms": SimpleNamespace(
            mean=list(IMAGENET[0]), std=list(IMAGENET[1]), crop_size=[224, 192],
            resize_size=[256], interpolation=Filter.BICUBIC)},
    ],
)  # fmt: skip
def test_libraries_of_networks(attributes: dict[str, object]) -> None:
    assert preprocessing_of(network(**attributes)) == OF_TIMM


def test_ones_own_words() -> None:
    said = Preprocessing((104.0,), (1.0,), "0..255", "bgr", (32, 32))
    assert preprocessing_of(network(preprocessing=said)) == said
    same = {
        "mean": 104,
        "std": 1,
        "pixel_range": "0..255",
        "channel_order": "BGR",
        "input_size": 32,
    }
    assert preprocessing_of(network(preprocessing=same)) == said


@pytest.mark.parametrize(
    "attributes",
    [{}, {"pretrained_cfg": {}}, {"transforms": print}, {"preprocessing": nn.Conv2d(1, 1, 1)}],
)
def test_nothing_is_said(attributes: dict[str, object]) -> None:
    assert preprocessing_of(network(**attributes)) is None
    assert preprocessing_of(None) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
             "size": {"height": 224, "width": 224}, "resample": 3},
            Preprocessing((0.5,) * 3, (0.5,) * 3, input_size=(224, 224), interpolation="bicubic"),
        ),
        (
            {"do_normalize": False, "image_mean": [0.5], "image_std": [0.5], "size": 96},
            Preprocessing((0.0,), (1.0,), input_size=(96, 96)),
        ),
        (
            {"image_mean": [0.5], "image_std": [0.5], "size": {"shortest_edge": 256},
             "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            Preprocessing((0.5,), (0.5,), input_size=(224, 224)),
        ),
        (
            {"do_rescale": False, "image_mean": [100.0], "image_std": [50.0], "do_resize": False},
            Preprocessing((100.0,), (50.0,), "0..255"),
        ),
        (
            {"do_flip_channel_order": True, "image_mean": [0.5], "image_std": [0.5], "size": 96,
             "image_processor_type": "MobileViTImageProcessor", "do_convert_rgb": True},
            Preprocessing((0.0,), (1.0,), "0..1", "bgr", (96, 96)),
        ),
    ],
)  # fmt: skip
def test_a_folder_of_hugging_face(tmp_path: Path, said: object, expected: Preprocessing) -> None:
    (tmp_path / HF_FILE).write_text(json.dumps(said), encoding="utf-8")
    assert preprocessing_of(nn.Identity(), tmp_path) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"include_top": True}, "include_top: a step that is not known"),
        ({"do_pad": True}, "do_pad: a step that is not known"),
        ({"image_mean": None}, "image_mean: missing"),
        ({"do_normalize": True, "image_std": None}, "image_std: missing"),
        ({"image_mean": "imagenet"}, "image_mean: 'imagenet' is not a number"),
        ({"size": {"longest_edge": 224}}, r"size: \{'longest_edge': 224\} is no size"),
        ({"size": None}, "size: missing"),
        ({"do_center_crop": True}, "crop_size: missing"),
        ({"do_center_crop": True, "do_resize": False}, "do_center_crop without do_resize"),
        ({"rescale_factor": "1/255"}, "rescale_factor: '1/255' is not a number"),
        ({"rescale_factor": 0.01}, "rescale_factor: pixels are multiplied by 0.01"),
        ({"rescale_offset": True}, "rescale_factor: .*moved"),
        ({"do_flip_channel_order": True, "image_mean": [0.1, 0.2, 0.3]}, "do_flip_channel_order"),
    ],
)
def test_steps_that_are_not_known_are_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 96}
    (tmp_path / HF_FILE).write_text(json.dumps(said), encoding="utf-8")
    assert preprocessing_of(None, tmp_path)
    (tmp_path / HF_FILE).write_text(json.dumps({**said, **changes}), encoding="utf-8")
    with pytest.raises(UserError, match=f"{HF_FILE}: {words}"):
        preprocessing_of(None, tmp_path)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"channel_order": "bgr"}, Preprocessing(channel_order="bgr")),
        ({"pixel_range": "0..255"}, Preprocessing(pixel_range="0..255")),
        (
            {"mean": np.full(3, 0.5, np.float32), "std": torch.ones(1)},
            Preprocessing((0.5,) * 3, (1.0,)),
        ),
        ({"crop_size": [96]}, Preprocessing(input_size=(96, 96))),
        ({"input_size": (3, 64, 48)}, Preprocessing(input_size=(64, 48))),
        ({"normalisation": "half"}, Preprocessing((0.5,), (0.5,))),
        (SimpleNamespace(normalisation="none"), Preprocessing((0.0,), (1.0,))),
        ({"normalisation": "data", "input_size": 32}, Preprocessing(input_size=(32, 32))),
        (
            {"normalisation": "imagenet", "channel_order": "bgr"},
            Preprocessing(*(numbers[::-1] for numbers in IMAGENET), channel_order="bgr"),
        ),
        (
            {"normalisation": "half", "pixel_range": "0..255"},
            Preprocessing((127.5,), (127.5,), "0..255"),
        ),
        ({**TIMM, "crop_pct": 0.9, "test_input_size": (3, 288, 288)}, OF_TIMM),
    ],
)
def test_one_word_of_ones_own_is_followed(said: object, expected: Preprocessing) -> None:
    assert preprocessing_of(network(preprocessing=said)) == expected


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"input_size": (224, 224, 3)}, r"preprocessing: input_size: \(224, 224, 3\) is no size"),
        ({"input_size": "224x224"}, "preprocessing: input_size: '224x224' is no size"),
        ({"input_size": (1, 3, 224, 224)}, "preprocessing: input_size: "),
        ({"crop_size": 0.5}, "preprocessing: crop_size: 0.5 is no size"),
        ({"input_size": 0}, "preprocessing: input_size: 0 is no size"),
        ({"mean": "imagenet", "std": 1}, "preprocessing: mean: 'imagenet' is not a number"),
        ({"mean": (0.5, "half"), "std": 1}, "preprocessing: mean: "),
        ({"channel_order": "brg"}, "Identity.preprocessing: .*channel_order 'brg'"),
        ({"mean": 0.5, "std": 0}, "Identity.preprocessing: .*std positive"),
        ({"normalisation": "haf"}, "Identity.preprocessing: unknown normalisation .*'half'"),
        ({"normalisation": "half", "mean": 0.5, "std": 1}, "preprocessing: .*give one of them"),
        ({"normalization": "half", "input_size": 32}, "preprocessing: .*mean 'normalisation'"),
        ({"means": 0.5, "stds": 1, "input_size": 32}, "preprocessing: .*Did you mean 'mean'"),
        (
            {"image_mean": 0.5, "image_std": 0.5},
            "preprocessing: unknown name 'image_mean'.*another name",
        ),
    ],
)
def test_words_of_ones_own_that_cannot_be_followed(said: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        preprocessing_of(network(preprocessing=said))


def test_what_cannot_be_followed_is_said(tmp_path: Path) -> None:
    assert preprocessing_of(nn.Identity(), tmp_path) is None
    for content, words in (("{", "not readable"), ("[]", "holds a list")):
        (tmp_path / HF_FILE).write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            preprocessing_of(nn.Identity(), tmp_path)
    with pytest.raises(UserError, match="one of mean and std"):
        preprocessing_of(network(pretrained_cfg={"mean": (0.5,)}))


def test_real_networks_say_what_their_libraries_do() -> None:
    timm = library("timm")
    model = timm.create_model("test_vit", num_classes=4)
    data = timm.data.resolve_data_config({}, model=model)
    expected = Preprocessing(
        data["mean"], data["std"], input_size=data["input_size"][1:],
        interpolation=data["interpolation"],
    )  # fmt: skip
    assert preprocessing_of(model) == expected


def test_real_weights_say_how_they_were_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    models = library("torchvision").models
    kind = models.get_model_weights("resnet18")
    state = models.resnet18().state_dict()
    monkeypatch.setattr(kind, "get_state_dict", lambda self, **options: state)
    model = build_model(
        "torchvision:resnet18", num_classes=7, in_channels=3, width=1, options={"pretrained": True}
    )
    expected = Preprocessing(*IMAGENET, input_size=(224, 224), interpolation="bilinear")
    assert preprocessing_of(model) == expected
    assert [name for name, _ in model.named_children()][-1] == "fc", "and has no part more"


def test_a_real_folder_says_what_its_processor_does(tmp_path: Path) -> None:
    transformers = library("transformers")
    if not hasattr(transformers, "ViTImageProcessor"):
        pytest.skip("this version has no ViTImageProcessor")
    processor = transformers.ViTImageProcessor(size={"height": 48, "width": 48})
    processor.save_pretrained(tmp_path)
    found = preprocessing_of(None, tmp_path)
    assert found is not None
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    expected = processor(list(pixels), return_tensors="pt")["pixel_values"]
    # The processor rounds to whole levels between scaling and normalising.
    torch.testing.assert_close(
        found.apply(pixels, (0.5,) * 3, (0.5,) * 3), expected, atol=0.02, rtol=0
    )


@pytest.mark.parametrize("other", ["hamming", "nearest-exact"])
def test_a_filter_that_is_not_known_is_refused_and_can_be_replaced(other: str) -> None:
    found = network(pretrained_cfg={"mean": 0.5, "std": 0.5, "interpolation": other})
    with pytest.raises(UserError, match=f"pretrained_cfg: interpolation '{other}' is not one of"):
        preprocessing_of(found)
    known = preprocessing_of(found, given={"interpolation": "lanczos"})
    assert known == Preprocessing((0.5,), (0.5,), interpolation="lanczos")
