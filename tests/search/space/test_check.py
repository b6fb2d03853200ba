"""Values of a space that networks, optimiser or device cannot use are refused before training."""

import sys
from pathlib import Path

import pytest
import torch

from krscale.config import load
from krscale.errors import UserError
from krscale.search.space.check import check_space
from krscale.setup.networks import Networks


def check(folder: Path, *lines: str, settings: tuple[str, ...] = ()) -> None:
    path = folder / "space.toml"
    path.write_text("[plain]\n" + "\n".join(lines), encoding="utf-8")
    check_space(
        load(None, [f"search.space='{path}'", "search.methods=['plain']", *settings]),
    )


def choices(field: str, *values: str, when: str = "") -> str:
    condition = f", when = {{ {when} }}" if when else ""
    listed = ", ".join(values)
    return f'"{field}" = {{ type = "categorical", choices = [{listed}]{condition} }}'


BOTH = choices("train.optimizer", '"sgd"', '"adamw"')
RATE = '"train.learning_rate" = { type = "float", low = 0.0003, high = 0.003, log = true'
OF_ADAMW = RATE + ', when = { "train.optimizer" = ["adamw"] } }'
PARTS = '"train.gradient_accumulation" = { type = "int", low = 1, high = %d }'
ADAMW = ("train.optimizer=adamw", "train.learning_rate=0.001")


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ([choices("train.optimizer", '"sgd"', '"nonsense"')], (), "unknown optimizer 'nonsense'"),
        ([choices("train.optimizer", '"sgd"', '"lbfgs"')], (), "'lbfgs' cannot be used here"),
        ([choices("train.optimizer", '"sgd"', '"SGD"')], (), "'sgd' and 'SGD' are the same"),
        ([choices("train.momentum", "0.5", "0.9")], ADAMW, r"train.momentum = 0.5: .*for SGD"),
        (
            [BOTH, OF_ADAMW, choices("train.momentum", "0.5", "0.9")],
            (),
            r"train.momentum = 0.5 with train.optimizer = 'adamw': .*for SGD",
        ),
        ([BOTH], (), r"'adamw' would be trained with a learning rate for SGD: write a range"),
        ([BOTH, '"train.learning_rate" = "default"'], (), "'adamw' would be trained with a lear"),
        ([BOTH, OF_ADAMW.replace('["adamw"]', '["sgd"]')], (), "'adamw' would be trained with"),
        (
            [choices("train.optimizer", '"sgd"', '"rprop"'), RATE + " }"],
            (),
            "train.optimizer = 'rprop': train.weight_decay: Rprop has none",
        ),
        ([PARTS % 64], ("student.options={num_stages=4}",), "gradient_accumulation = 64: .*norm"),
        (
            [PARTS % 32, choices("train.global_batch_size", "16", "64")],
            (),
            "32 parts of a batch of 16",
        ),
    ],
)
def test_what_no_trial_could_train_with_is_refused(
    tmp_path: Path, lines: list[str], settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path, *lines, settings=settings)
    assert "space.toml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "settings"),
    [
        ([BOTH, OF_ADAMW], ()),
        ([BOTH, RATE + " }"], ()),
        ([BOTH], ("train.learning_rate=0.01",)),
        ([BOTH, '"train.learning_rate" = "default"'], ADAMW),
        (
            [
                BOTH,
                OF_ADAMW,
                choices("train.momentum", "0.5", "0.9", when='"train.optimizer" = ["sgd"]'),
            ],
            (),
        ),
    ],
)
def test_several_optimisers_each_with_a_rate_are_searched(
    tmp_path: Path, lines: list[str], settings: tuple[str, ...]
) -> None:
    check(tmp_path, *lines, settings=settings)


def test_an_order_that_needs_a_gpu_is_searched_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = choices("train.channels_last", "true", "false")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # as if no other test had imported it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    local = ("cluster.address=local",)
    with pytest.raises(UserError, match=r"channels_last = True: .*this machine has no GPU"):
        check(tmp_path, line, settings=local)
    check(tmp_path, line, settings=("cluster.address=ray://elsewhere:10001",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check(tmp_path, line, settings=local)


def test_networks_are_built_once_for_all_values_and_methods_that_do_not_shape_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    whole = Networks.check
    monkeypatch.setattr(Networks, "check", lambda networks: seen.append(whole(networks)))
    methods = "search.methods=['plain', 'kd', 'kr']"
    kr = '[kr]\n"distill.granularity" = "default"\n"distill.sparsity" = "default"'
    check(tmp_path, BOTH, OF_ADAMW, kr, settings=(methods,))
    assert len(seen) == 1, "of the experiment itself"
    deeper = choices("student.options.num_blocks", "1", "2", "3")
    check(tmp_path, BOTH, OF_ADAMW, deeper, kr, deeper, settings=(methods,))
    assert len(seen) == 2 + 2, "one for each number that is not the experiment's own"
