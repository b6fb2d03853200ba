"""Two real processes over gloo against one process on the whole batch.

Run as a script, this file is both workers: one is forked from the other, for the imports of one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accumulated_training import (
    dropout_on_workers,
    judged_without_running_statistics,
    taught_in_every_second_step,
    teacher_after_an_epoch,
    training_with_dropout,
    weights_after_an_epoch,
)
from hypothesis import given
from hypothesis import strategies as st
from kr_on_workers import gradients_of_one, gradients_of_two
from normed_network import small_network
from torch import nn
from torch.nn import functional as F

from krscale.batch_norm import convert_batch_norm
from krscale.config.training import BatchSizes
from krscale.parallel import (
    Workers,
    draw_own_numbers,
    num_parts_of,
    share_of,
    sum_over_workers,
)
from krscale.training import loop

WORLD_SIZE = 2
# name: (norm, shape of the whole batch, samples on worker 0)
NORMS = {
    "images": (lambda: nn.BatchNorm2d(3), (6, 3, 4, 5), 3),
    "uneven": (lambda: nn.BatchNorm2d(3), (5, 3, 4, 5), 4),
    "empty": (lambda: nn.BatchNorm2d(3), (5, 3, 4, 5), 0),
    "vectors": (lambda: nn.BatchNorm1d(4), (7, 4), 2),
    "sequences": (lambda: nn.BatchNorm1d(4), (3, 4, 6), 2),
    "cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (6, 3, 2, 2), 5),
    "no_affine": (lambda: nn.BatchNorm2d(3, affine=False), (6, 3, 2, 2), 3),
    "no_running": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (6, 3, 2, 2), 3),
    "offset": (lambda: nn.BatchNorm2d(3, eps=1e-3), (8, 3, 4, 4), 3),
}
# Samples in each of the three steps; the last batches give uneven or empty shares.
TRAININGS = {"even": (6, 6, 6), "uneven": (6, 6, 5), "single": (6, 6, 1)}


def _whole_batch(name):
    _, shape, _ = NORMS[name]
    torch.manual_seed(3)
    offset = 1000.0 if name == "offset" else 2.0
    # The means differ between workers, so that the statistics of one alone would be wrong.
    drift = torch.linspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape) * 1.5 + drift + offset, torch.randn(shape)


def _norm(name):
    torch.manual_seed(4)
    norm = NORMS[name][0]()
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def _run_norm(norm, inputs, upstream):
    """Return all that can differ after two training steps and one evaluation."""
    inputs = inputs.clone().requires_grad_()
    outputs = [norm(inputs), norm(inputs * 0.5 + 1)]
    sum((output * upstream).sum() for output in outputs).backward()
    gradients = {f"d{n}": p.grad for n, p in norm.named_parameters()}
    norm.eval()
    return {
        "outputs": torch.stack([o.detach() for o in outputs]),
        "inputs": inputs.grad,
        "eval": norm(inputs.detach()).detach(),
        **gradients,
        **{n: b.clone() for n, b in norm.named_buffers()},
    }


def _train(name, workers, wrap):
    model = wrap(convert_batch_norm(small_network(), workers))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(6)
    for batch_size in TRAININGS[name]:
        images = torch.randn(batch_size, 1, 6, 6, generator=generator)
        labels = torch.randint(3, (batch_size,), generator=generator)
        start, stop = share_of(batch_size, workers.rank, workers.world_size)
        losses = F.cross_entropy(model(images[start:stop]), labels[start:stop], reduction="none")
        assert losses.shape == (stop - start,)
        optimiser.zero_grad()
        (losses.sum() * (workers.world_size / batch_size)).backward()
        optimiser.step()
    return {k.removeprefix("module."): v for k, v in model.state_dict().items()}


def _work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE
    )
    workers = Workers.from_environment()
    results = {"workers": (workers.rank, workers.world_size, str(workers.device))}
    mine = torch.tensor([1.0 + rank, 10.0])
    results["sum"], results["summed"] = sum_over_workers(mine), mine
    for name, (_, _, split) in NORMS.items():
        inputs, upstream = _whole_batch(name)
        rows = slice(0, split) if rank == 0 else slice(split, None)
        norm = convert_batch_norm(_norm(name), workers)
        results[name] = _run_norm(norm, inputs[rows], upstream[rows])
    try:
        nn.SyncBatchNorm(3)(torch.ones(2, 3, 4, 4))
    except ValueError as error:
        results["torch's own"] = str(error)
    for name in TRAININGS:
        results[f"train_{name}"] = _train(name, workers, nn.parallel.DistributedDataParallel)
    results["kr"] = gradients_of_two(rank)
    results["parts"] = weights_after_an_epoch(workers, 3, Path(folder) / "cache")
    results["bf16"] = weights_after_an_epoch(workers, 1, Path(folder) / "cache", "bf16")
    results["single"] = weights_after_an_epoch(workers, 41, Path(folder) / "cache", "bf16")
    results["teacher"] = teacher_after_an_epoch(workers, Path(folder) / "cache")
    results["dropout"] = dropout_on_workers(workers, Path(folder))
    results["heads"] = taught_in_every_second_step(workers)
    loop.EVALUATION_BATCH_SIZE = 8  # the first worker has two batches, the second one
    results["judged"] = judged_without_running_statistics(workers, Path(folder) / "cache")
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()  # neither process ends while the other still communicates with it
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    root = Path(__file__).parents[1]
    paths = f"{root}{os.pathsep}{root / 'tests'}"
    environment = os.environ | {"PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


class TestTwoProcesses:
    def test_workers_from_environment(self, results):
        assert [r["workers"] for r in results] == [(0, 2, "cpu"), (1, 2, "cpu")]

    def test_sum_reaches_everyone_and_leaves_the_operand(self, results):
        for rank, result in enumerate(results):
            assert result["sum"].tolist() == [3.0, 20.0]
            assert result["summed"].tolist() == [1.0 + rank, 10.0]

    @pytest.mark.parametrize("name", NORMS)
    def test_norm_equals_plain_norm_of_the_whole_batch(self, results, name):
        inputs, upstream = _whole_batch(name)
        reference = _norm(name).double()
        expected = _run_norm(reference, inputs.double(), upstream.double())
        first, second = (r[name] for r in results)
        # Inputs near 1000 carry only 6e-5 of absolute precision in float32 themselves.
        tolerance = {"rtol": 2e-4, "atol": 1e-3} if name == "offset" else {"rtol": 1e-4}
        tolerance = {"atol": 2e-5} | tolerance
        for key, value in expected.items():
            if key in ("outputs", "inputs", "eval"):
                dim = 1 if key == "outputs" else 0
                found = torch.cat([first[key], second[key]], dim)
            elif key.startswith("d"):
                found = first[key] + second[key]
            else:
                assert torch.equal(first[key], second[key]), key
                found = first[key]
            torch.testing.assert_close(
                found.double(), value.double(), **tolerance, msg=lambda m, k=key: f"{k}: {m}"
            )

    def test_batches_in_parts_equal_whole_batches_of_one_process(self, results, tmp_path):
        expected = weights_after_an_epoch(Workers.alone(), 1, tmp_path)
        for result in results:
            torch.testing.assert_close(result["parts"], expected, rtol=1e-4, atol=1e-5)

    def test_heads_that_some_steps_teach_equal_those_of_one_process(self, results):
        """In the steps between, a gradient of 0 let their momentum and decay go on."""
        expected = taught_in_every_second_step(Workers.alone())
        assert "method.heads.0.weight" in expected
        for result in results:
            torch.testing.assert_close(result["heads"], expected, rtol=1e-4, atol=1e-5)

    def test_a_teacher_of_two_is_that_of_one_process(self, results, tmp_path):
        expected = teacher_after_an_epoch(Workers.alone(), tmp_path)
        assert "first.1.running_mean" in expected
        for result in results:
            torch.testing.assert_close(result["teacher"], expected, rtol=1e-4, atol=1e-5)

    def test_bf16_with_shared_batch_norm_is_that_of_one_process(self, results, tmp_path):
        expected = weights_after_an_epoch(Workers.alone(), 1, tmp_path, "bf16")
        assert "first.1.running_mean" in expected
        for key, value in expected.items():
            assert torch.equal(results[0]["bf16"][key], results[1]["bf16"][key]), key
            found = results[0]["bf16"][key]
            torch.testing.assert_close(
                found, value, rtol=0.02, atol=0.01, msg=lambda m, k=key: f"{k}: {m}"
            )

    def test_more_parts_than_a_worker_has_samples_leave_batch_norm_finite(self, results):
        for key, value in results[0]["single"].items():
            assert value.isfinite().all(), key
            assert torch.equal(value, results[1]["single"][key]), key

    def test_a_norm_without_running_statistics_is_judged_on_uneven_shares(
        self, results, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(loop, "EVALUATION_BATCH_SIZE", 16)
        order = [*range(8), *range(9, 17), 8]  # the batches of both workers: 8 and 8, then 1
        expected = judged_without_running_statistics(Workers.alone(), tmp_path, order)
        for result in results:
            assert result["judged"] == pytest.approx(expected, rel=1e-5)

    def test_every_worker_draws_its_own_dropout_and_repeats_it_after_a_restart(
        self, results, tmp_path
    ):
        """All had one random state: images at the same place of both shares got equal masks."""
        first, second = (result["dropout"] for result in results)
        assert first["first"].shape == second["first"].shape
        for epoch in ("first", "second"):
            equal = (first[epoch] == second[epoch]).double().mean()
            assert 0.3 < equal < 0.7, epoch
        for found in (first, second):
            assert not torch.equal(found["first"], found["second"])
            assert torch.equal(found["second"], found["repeated"])
        for name in [name for name in first if f"again {name}" in first]:
            assert torch.equal(first[name], second[name])
            assert torch.equal(first[name], first[f"again {name}"])
        # The first worker draws what a worker alone would.
        training_with_dropout(Workers.alone(), tmp_path)
        expected = F.dropout(torch.ones_like(first["first"].chunk(3)[0]), 0.5)
        assert torch.equal(first["first"].chunk(3)[0], expected)

    @pytest.mark.parametrize("name", TRAININGS)
    def test_training_equals_one_process(self, results, name):
        expected = _train(name, Workers.alone(), lambda model: model)
        start = small_network().state_dict()
        assert not torch.allclose(expected["0.weight"], start["0.weight"], atol=1e-3)
        for result in results:
            found = result[f"train_{name}"]
            assert list(found) == list(expected)
            for key, value in expected.items():
                torch.testing.assert_close(
                    found[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
                )

    def test_kr_in_ones_own_loop_equals_one_process(self, results):
        first, second = (result["kr"] for result in results)
        # Both have the first worker's probes, gains and heads, though each read other images.
        for one, other in zip(first["state"], second["state"], strict=True):
            assert torch.equal(one, other)
        expected = gradients_of_one()
        for found in (first, second):
            torch.testing.assert_close(found["gradients"], expected, rtol=1e-4, atol=1e-5)
        # On one worker, untrained heads have no gradient; DistributedDataParallel needs one: 0.
        expected = gradients_of_one(progress=1.0)
        for found in (first, second):
            of_student, of_heads = found["late"][: len(expected)], found["late"][len(expected) :]
            torch.testing.assert_close(of_student, expected, rtol=1e-4, atol=1e-5)
            assert of_heads
            assert not any(gradient.any() for gradient in of_heads)


class TestAlone:
    def test_from_environment_without_a_process_group(self):
        assert Workers.from_environment() == Workers(0, 1, torch.device("cpu"))
        assert Workers.alone("cpu") == Workers()

    def test_random_numbers_of_a_worker_depend_on_seed_epoch_and_rank(self):
        drawn = set()
        for arguments in ((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1), (-1, 0, 1)):
            torch.manual_seed(5)
            before = torch.get_rng_state()
            draw_own_numbers(*arguments)
            assert torch.equal(torch.get_rng_state(), before) == (arguments[-1] == 0)
            drawn.add(tuple(torch.rand(3).tolist()))
        assert len(drawn) == 6

    def test_sum_is_the_operand(self):
        tensor = torch.ones(2)
        assert sum_over_workers(tensor) is tensor


class TestShareOf:
    @given(st.integers(0, 300), st.integers(1, 40))
    def test_shares_are_even_contiguous_and_cover(self, batch_size, world_size):
        shares = [share_of(batch_size, rank, world_size) for rank in range(world_size)]
        covered = [n for start, stop in shares for n in range(start, stop)]
        assert covered == list(range(batch_size))
        sizes = [stop - start for start, stop in shares]
        assert max(sizes) - min(sizes) <= 1

    def test_by_hand(self):
        assert [share_of(5, r, 2) for r in range(2)] == [(0, 3), (3, 5)]
        assert [share_of(1, r, 2) for r in range(2)] == [(0, 1), (1, 1)]

    @pytest.mark.parametrize("rank", [-1, 2])
    def test_unknown_rank(self, rank):
        with pytest.raises(ValueError, match=f"share {rank} is not one of 2"):
            share_of(4, rank, 2)


class TestNumPartsOf:
    @given(st.integers(1, 400), st.integers(1, 12), st.integers(1, 12))
    def test_no_part_is_of_a_single_sample_where_one_worker_has_none_of_it(
        self, batch_size, world_size, wanted
    ):
        """With 9 samples, 4 workers and 4 parts, part 3 held one sample, the first worker's."""
        number = num_parts_of(batch_size, world_size, wanted)
        assert 1 <= number <= wanted
        parts = [0] * number
        for rank in range(world_size):
            start, stop = share_of(batch_size, rank, world_size)
            for part in range(number):
                first, last = share_of(stop - start, part, number)
                parts[part] += last - first
        assert sum(parts) == batch_size
        # Other batches are refused before the first step, whatever the number of workers.
        if BatchSizes(batch_size, batch_size, wanted).smallest > 1:
            assert min(parts) > 1
        if batch_size >= world_size * wanted:
            assert number == wanted

    def test_a_worker_alone_has_as_many_parts_as_samples(self):
        assert [num_parts_of(size, 1, 4) for size in (1, 3, 4, 64)] == [1, 3, 4, 4]


def test_torchs_own_norm_of_all_workers_still_takes_no_tensors_on_the_cpu(results):
    """Once it does, the reason that `convert_batch_norm` gives is outdated."""
    assert all("to be on GPU" in of_worker["torch's own"] for of_worker in results)


if __name__ == "__main__":
    import torch._dynamo  # by the first optimiser of each otherwise

    other = os.fork()
    _work(0 if other else 1, sys.argv[1])
    code = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) if other else 0
    # Threads of gloo can abort an ordinary exit on a busy machine, after all the work is done.
    os._exit(code)
