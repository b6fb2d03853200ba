from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krscale.config import ViewsConfig
from krscale.data import Dataset, Split
from krscale.data.arrow import write_split
from krscale.data.augmentation.mixing import partners
from krscale.data.augmentation.views import apply_views
from krscale.data.loader import Loader, _fits, permutation
from krscale.errors import UserError

NUM_SAMPLES = 43
VIEWS = ViewsConfig(num_views=3, shift=1, flip=True)
CPU = torch.device("cpu")


class FakeStore:
    """Returns `10 * sample + view` as every logit, so that each is recognised."""

    num_views = VIEWS.num_views
    num_samples = NUM_SAMPLES

    def tap_logits(self, view, samples, device=None):
        assert device == CPU
        return (samples * 10 + view).float().view(-1, 1, 1).expand(-1, 2, 3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (NUM_SAMPLES, 3, 4, 4), dtype=np.uint8)
    write_split(path / "train.arrow", Split(images, generator.integers(0, 5, NUM_SAMPLES)))
    return Dataset(
        path=path,
        fingerprint="",
        source="random",
        classes=tuple("abcde"),
        image_shape=(3, 4, 4),
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
        num_samples={"train": NUM_SAMPLES},
        sha256={},
    )


def _loader(dataset, **changes):
    arguments = {"global_batch_size": 8, "seed": 5, "device": CPU, "store": FakeStore()}
    return Loader(dataset, changes.pop("views", VIEWS), **arguments | changes)


def _fields(batch):
    return batch.images, batch.labels, batch.samples, batch.tap_logits


def _mixed_fields(batch):
    return *_fields(batch), *batch.mixture


class TestEpoch:
    @given(st.integers(1, 60), st.integers(1, 9), st.integers(-3, 2**70), st.integers(0, 400))
    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_workers_together_see_what_one_would(self, dataset, size, world_size, seed, epoch):
        alone = _loader(dataset, global_batch_size=size, seed=seed)
        whole = list(alone.epoch(epoch))
        shares = [
            list(
                _loader(
                    dataset, global_batch_size=size, seed=seed, rank=rank, world_size=world_size
                ).epoch(epoch)
            )
            for rank in range(world_size)
        ]
        assert len(whole) == alone.num_steps == -(-NUM_SAMPLES // size)
        for batch, *parts in zip(whole, *shares, strict=True):
            for expected, *found in zip(_fields(batch), *map(_fields, parts), strict=True):
                assert torch.equal(torch.cat(found), expected)
            assert {part.global_size for part in parts} == {batch.global_size}
            assert batch.global_size == len(batch.samples)
            sizes = [len(part.samples) for part in parts]
            assert max(sizes) - min(sizes) <= 1
        seen = torch.cat([batch.samples for batch in whole])
        assert sorted(seen.tolist()) == list(range(NUM_SAMPLES))
        sizes = [len(batch.samples) for batch in whole]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1

    @pytest.mark.parametrize("epoch", [0, 1, 5])
    def test_contents_of_a_batch(self, dataset, epoch):
        split = dataset.split("train")
        for batch in _loader(dataset).epoch(epoch):
            pixels = torch.from_numpy(split.images[batch.samples.numpy()])
            views = apply_views(pixels, batch.samples, epoch % 3, VIEWS).double() / 255
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (dataset.mean, dataset.std))
            expected = (views - mean) / std
            torch.testing.assert_close(batch.images.double(), expected, atol=1e-5, rtol=0)
            assert batch.images.dtype == torch.float32
            assert batch.labels.tolist() == split.labels[batch.samples.numpy()].tolist()
            said = batch.samples * 10 + epoch % 3
            assert batch.tap_logits[:, 1, 2].tolist() == said.tolist()

    @given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 2**40), st.integers(0, 20))
    @settings(
        max_examples=20,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_workers_together_see_the_mixed_images_that_one_would(
        self, dataset, size, world_size, seed, epoch
    ):
        views = ViewsConfig(num_views=3, mixup=0.4, cutmix=1.0, seed=seed)
        shared = {"global_batch_size": size, "seed": seed, "views": views}
        shares = [
            _loader(dataset, **shared, rank=rank, world_size=world_size).epoch(epoch)
            for rank in range(world_size)
        ]
        for batch, *parts in zip(_loader(dataset, **shared).epoch(epoch), *shares, strict=True):
            found = [torch.cat(field) for field in zip(*map(_mixed_fields, parts), strict=True)]
            assert all(map(torch.equal, found, _mixed_fields(batch)))

    def test_mixed_images_have_the_labels_of_both(self, dataset):
        """Each mixed pixel is the weighted mean of the two images whose labels the batch has."""
        views = ViewsConfig(num_views=3, shift=0, mixup=1.0)
        split = dataset.split("train")
        plain = torch.from_numpy(split.images.copy()).float()
        for batch in _loader(dataset, views=views).epoch(1):
            others = partners(batch.samples, 1, views, NUM_SAMPLES)
            assert batch.mixture.labels.tolist() == split.labels[others.numpy()].tolist()
            assert batch.labels.tolist() == split.labels[batch.samples.numpy()].tolist()
            weights = batch.mixture.weights.view(-1, 1, 1, 1)
            mixed = weights * plain[batch.samples] + (1 - weights) * plain[others]
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (dataset.mean, dataset.std))
            shown = (batch.images * std + mean) * 255
            torch.testing.assert_close(shown, mixed, rtol=0, atol=0.51)

    def test_images_that_stay_on_the_host_are_mixed_alike(self, dataset):
        """`cpu:0` is also the CPU, but differs from the device that the images are on."""
        views = ViewsConfig(num_views=3, shift=1, mixup=1.0, cutmix=1.0)
        here, there = (
            _loader(dataset, views=views, store=None, device=device).epoch(1)
            for device in (CPU, torch.device("cpu", 0))
        )
        for batch, other in zip(here, there, strict=True):
            assert torch.equal(batch.images, other.images)
            assert all(map(torch.equal, batch.mixture, other.mixture))

    def test_without_mixing_batches_have_no_mixture(self, dataset):
        assert all(batch.mixture is None for batch in _loader(dataset).epoch(0))

    def test_every_worker_gets_the_features_of_its_samples(self, dataset):
        class FakeFeatures(FakeStore):
            def features(self, view, samples, device=None):
                said = self.tap_logits(view, samples, device)
                return said[:, 0], said[:, :, :1]

        for rank in range(3):
            loader = _loader(
                dataset, features={"attention": FakeFeatures()}, rank=rank, world_size=3
            )
            for batch in loader.epoch(1):
                first, second = batch.teacher_features["attention"]
                assert torch.equal(first, batch.tap_logits[:, 0])
                assert torch.equal(second, batch.tap_logits[:, :, :1])
        assert next(_loader(dataset).epoch(0)).teacher_features == {}

    def test_what_is_read_ahead_is_that_of_the_view(self, dataset):
        loader = _loader(dataset, global_batch_size=4)
        for epoch in (0, 1, 2):
            for batch in loader.epoch(epoch):
                want = (batch.samples * 10 + epoch % VIEWS.num_views).float()
                assert torch.equal(batch.tap_logits[:, 0, 0], want)

    def test_views_recur_but_orders_do_not(self, dataset):
        loader = _loader(dataset, global_batch_size=NUM_SAMPLES)
        first, second, again = (next(loader.epoch(epoch)) for epoch in (0, 1, 3))

        def sorted_images(batch):
            return batch.images[batch.samples.argsort()]

        assert torch.equal(sorted_images(first), sorted_images(again))
        assert not torch.equal(sorted_images(first), sorted_images(second))
        assert not torch.equal(first.samples, again.samples)

    @pytest.mark.parametrize(("num_views", "differ"), [(1, 1), (6, 6)])
    def test_one_view_for_all_epochs_or_one_for_each(self, dataset, num_views, differ):
        views = ViewsConfig(num_views=num_views, shift=1, flip=True)
        loader = _loader(dataset, views=views, store=None)
        epochs = [list(loader.epoch(epoch)) for epoch in range(6)]
        order = [torch.cat([b.samples for b in batches]).argsort() for batches in epochs]
        seen = {
            torch.cat([b.images for b in batches])[places].numpy().tobytes()
            for batches, places in zip(epochs, order, strict=True)
        }
        assert len(seen) == differ

    def test_empty_share(self, dataset):
        for batch in _loader(dataset, global_batch_size=1, rank=1, world_size=2).epoch(0):
            assert batch.global_size == 1
            assert batch.images.shape == (0, 3, 4, 4)
            assert batch.tap_logits.shape == (0, 2, 3)

    def test_no_batch_is_left_with_a_few(self, dataset):
        sizes = [len(batch.samples) for batch in _loader(dataset, global_batch_size=42).epoch(0)]
        assert sizes == [22, 21]  # not 42 and 1

    def test_without_a_store(self, dataset):
        assert all(b.tap_logits is None for b in _loader(dataset, store=None).epoch(0))

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
    def test_images_are_mapped_not_copied(self, dataset):
        loader = _loader(dataset)
        place = loader.images.data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, stop = (int(end, 16) for end in line.split()[0].split("-"))
            if start <= place < stop:
                assert line.endswith(str(dataset.path / "train.arrow"))
                break
        else:
            pytest.fail("the images lie in no mapping")


class TestPermutation:
    def test_depends_on_seed_and_epoch_only(self):
        torch.manual_seed(1)
        first = permutation(100, 3, 4)
        state = torch.get_rng_state()
        torch.manual_seed(2)
        torch.rand(3)
        assert torch.equal(permutation(100, 3, 4), first)
        torch.manual_seed(1)
        assert torch.equal(torch.get_rng_state(), state)

    def test_all_differ(self):
        orders = {
            tuple(permutation(30, seed, epoch).tolist())
            for seed in (-1, 0, 1, 2, 1000003)
            for epoch in range(20)
        }
        assert len(orders) == 100

    def test_places_are_even(self):
        # Mean place of sample 0 over 400 orders of 11: 5 +- 0.16 (1 sigma).
        places = [permutation(11, 0, e).tolist().index(0) for e in range(400)]
        assert abs(np.mean(places) - 5) < 0.8


class TestStoreMustFit:
    def test_other_views(self, dataset):
        views = ViewsConfig(num_views=4)
        with pytest.raises(UserError, match=r"holds 3 views .* views\.num_views asks for 4"):
            _loader(dataset, views=views)

    def test_other_samples(self, dataset):
        store = FakeStore()
        store.num_samples = 44
        with pytest.raises(UserError, match="holds 44 samples, the training split 43"):
            _loader(dataset, store=store)


@pytest.mark.parametrize(("share", "fits"), [(0.0, False), (0.49, False), (0.5, True), (0.9, True)])
def test_images_that_are_more_than_their_share_of_a_gpu_stay_on_the_host(monkeypatch, share, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2000))
    images = torch.zeros(10, 1, 10, 10, dtype=torch.uint8)
    assert _fits(images, torch.device("cuda", 0), share) == fits
    assert _fits(images, torch.device("cpu"), share)
