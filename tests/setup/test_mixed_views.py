"""From a config with mixed views to trained students, and which methods are refused."""

from pathlib import Path

import pytest
import torch

from krscale.config import load
from krscale.data.augmentation.views import notes_on_views
from krscale.errors import UserError
from krscale.parallel import Workers
from krscale.progress import Progress
from krscale.setup.build import Assets, build_training
from krscale.setup.methods import check_methods
from krscale.setup.plan import describe
from krscale.setup.prepare import prepare


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["views.mixup=0.4", "distill.method=crd"],
            r"distill\.method: 'crd' .*views\.mixup = 0\.4",
        ),
        (["views.cutmix=1", "distill.method=dkd"], r"distill\.method: 'dkd' .*views\.cutmix = 1"),
        (
            ["views.mixup=1", "search.methods=['plain','kr+kd+dkd']"],
            r"search\.methods: 'kr\+kd\+dkd'",
        ),
        (
            ["views.mixup=1", "views.cutmix=1", "distill.method=crd"],
            r"views\.mixup = 1 and views\.cutmix = 1 .*both to 0, or take .*: plain, .*kr\.$",
        ),
    ],
)
def test_methods_that_need_one_class_are_refused_before_anything_is_prepared(
    settings: list[str], message: str
) -> None:
    experiment = load(None, settings)
    for refuse in (check_methods, describe):
        with pytest.raises(UserError, match=message):
            refuse(experiment)


@pytest.mark.parametrize("method", ["plain", "label_smoothing", "kd", "pkt", "kr", "kr+kd+dist"])
def test_methods_that_learn_from_mixed_labels(method: str) -> None:
    check_methods(load(None, ["views.mixup=1", f"distill.method={method}"]))


def test_methods_are_as_free_as_ever_without_mixing() -> None:
    check_methods(load(None, ["views.erasing=0.5", "distill.method=crd"]))


@pytest.mark.parametrize(("source", "flip"), [("digits", True), ("digits", False)])
def test_mirrored_characters_are_said(source: str, flip: bool) -> None:
    experiment = load(None, [f"data.source={source}", f"views.flip={str(flip).lower()}"])
    said = [note for note in describe(experiment).notes if note.startswith("views.flip")]
    assert len(said) == flip
    assert notes_on_views(experiment.views, "image_folder") == ()


def test_students_learn_from_mixed_images_and_their_labels(tmp_path: Path) -> None:
    settings = ("teacher.width=4", "teacher.num_epochs=1", "views.num_views=1", "views.cutmix=1")
    method = ("views.mixup=0.4", "distill.method=kr+kd", "distill.probe_grid=2")
    experiment = load(None, [*settings, *method, f"storage_path={tmp_path}"])
    with Progress(quiet=True, planned={}) as progress:
        assets = Assets.open(prepare(experiment, progress))
    training = build_training(experiment, assets, 8, Workers.alone())
    batch = next(training.loader.epoch(0))
    output = training.learner(batch)
    assert batch.mixture is not None
    log_p = output.logits.double().log_softmax(dim=1)
    one_hot = torch.eye(10).double()
    own = batch.mixture.weights[:, None].double()
    targets = own * one_hot[batch.labels] + (1 - own) * one_hot[batch.mixture.labels]
    expected = -experiment.distill.ce_weight * (targets * log_p).sum(dim=1)
    torch.testing.assert_close(output.terms["ce"].double(), expected, rtol=1e-4, atol=1e-5)
    metrics = training.run_epoch()
    assert metrics["train/kr"] > 0
    assert 0 < metrics["train/accuracy"] < 1
