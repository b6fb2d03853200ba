"""What identifies a kept teacher stays what it was when fields are added."""

from krscale.config import TeacherConfig

OLDER = {
    "model", "options", "taps", "width", "weights", "num_epochs", "learning_rate", "weight_decay",
    "seed",
}  # fmt: skip
"""The fields of teachers at commit 3afaaac."""


def test_newer_fields_count_where_they_are_used_only() -> None:
    assert set(TeacherConfig().identity()) == OLDER
    changed = TeacherConfig(output_key="logits", tap_layout="channels_last", weights_key="ema")
    assert set(changed.identity()) == OLDER | {"output_key", "tap_layout", "weights_key"}
