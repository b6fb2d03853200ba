"""The identity of a kept teacher, a store and a run does not change when fields are added."""

import pytest

from krscale.config import TeacherConfig, ViewsConfig, load
from krscale.errors import UserError

OLDER = {
    "model", "options", "taps", "width", "weights", "num_epochs", "learning_rate", "weight_decay",
    "seed",
}  # fmt: skip
"""The fields of teachers at commit 3afaaac."""


def test_newer_fields_count_where_they_are_used_only() -> None:
    assert set(TeacherConfig().identity()) == OLDER
    changed = TeacherConfig(output_key="logits", tap_layout="channels_last", weights_key="ema")
    assert set(changed.identity()) == OLDER | {"output_key", "tap_layout", "weights_key"}


VIEWS_BEFORE = {"seed", "num_views", "crop_padding", "shift", "flip", "cutout", "jitter"}
"""The fields of views before mixed views were added."""


def test_newer_views_count_where_they_are_used_only() -> None:
    assert set(ViewsConfig().identity()) == VIEWS_BEFORE
    for name, value in (("resized_crop", 0.3), ("erasing", 0.5), ("mixup", 1.0), ("cutmix", 1.0)):
        assert set(ViewsConfig(**{name: value}).identity()) == VIEWS_BEFORE | {name}


def test_newer_views_are_part_of_a_runs_fingerprint_where_they_are_used() -> None:
    base = load(None, [])
    for setting in ("resized_crop=0.3", "erasing=0.5", "mixup=1", "cutmix=1"):
        assert load(None, [f"views.{setting}"]).fingerprint() != base.fingerprint()
    assert load(None, ["views.mixup=0"]).fingerprint() == base.fingerprint()


@pytest.mark.parametrize(
    "setting", ["mixup=-0.1", "mixup=11", "cutmix=nan", "erasing=1.5", "resized_crop=-1"]
)
def test_views_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=f"views.{setting.split('=')[0]}"):
        load(None, [f"views.{setting}"])
