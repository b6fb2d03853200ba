"""Stores of features: they share the code of the distributions' store, but not its rows."""

import pytest
import torch

from krscale.data.augmentation.views import apply_views, normalise
from krscale.errors import UserError
from krscale.knowledge.features import FeatureReader, feature_shapes, read_features
from krscale.store import (
    FeatureLayout,
    FeatureStore,
    StoreCheckError,
    check_store,
)

STAGES = ((5, 6, 6), (8, 2, 2))
KINDS = ("pooled", "attention", "map")
CPU = torch.device("cpu")
SAMPLES = torch.tensor([49, 3, 3, 0, 17, 31, 32, 48, 16, 15])


def of(small, kind="attention"):
    """Return `small` with a teacher that is read by features of a kind."""
    small.open_tapped = small.open_teacher
    small.open_teacher = lambda: (small.open_tapped()[0], FeatureReader(kind))
    return small


def prepare(small, kind="attention", report=None, **arguments):
    small.prepare(report, layout=FeatureLayout(feature_shapes(kind, STAGES)), **arguments)
    return FeatureStore.open(small.path, small.key)


def expected_of(small, kind, view):
    tapped, _ = small.open_tapped()
    dataset = small.dataset
    pixels = torch.from_numpy(dataset.split("train").images.copy())
    views = apply_views(pixels, torch.arange(small.num_samples), view, small.views)
    with torch.no_grad():
        outputs = tapped.eval()(normalise(views, dataset.mean, dataset.std))
    return [feature[SAMPLES] for feature in read_features(kind, outputs.features)]


@pytest.mark.parametrize("kind", KINDS)
def test_features_come_back(small, kind):
    store = prepare(of(small, kind), kind)
    for view in (2, 0):
        found = store.features(view, SAMPLES)
        expected = expected_of(small, kind, view)
        assert [f.shape for f in found] == [e.shape for e in expected]
        for feature, other in zip(found, expected, strict=True):
            assert feature.dtype == torch.float32
            torch.testing.assert_close(feature, other, rtol=2e-3, atol=1e-5)
    assert max(store.manifest.encoding_error) < 1e-3
    numbers = sum(f[0].numel() for f in found)
    assert store.manifest.plan.layout.bytes_per_row == 2 * numbers + 4
    assert store.info()["shapes"] == [list(f.shape[1:]) for f in found]
    assert [f.shape[0] for f in store.features(1, SAMPLES[:0])] == [0] * len(found)


def test_an_interrupted_build_goes_on_and_a_whole_one_is_kept(small):
    of(small)

    def stop(done, total):
        if done >= 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(small, report=stop)
    kept = small.files()
    assert 0 < len(kept) < 12
    prepare(small)
    assert kept.items() <= small.files().items()
    assert len(small.files()) == 12
    opened = small.num_opened
    prepare(small)
    assert small.num_opened == opened


def test_another_key_is_refused(small):
    of(small)
    prepare(small)
    with pytest.raises(UserError, match="teacher"):
        FeatureStore.open(small.path, {"teacher": "t2", "data": "d1"})


def test_a_check_asks_the_teacher_again_and_a_broken_shard_is_repaired_alone(small):
    of(small)
    prepare(small)
    check = check_store(small.spec(), 12)
    assert check.num_rows == 12

    def other():
        tapped, reader = small.open_teacher()
        with torch.no_grad():
            for parameter in tapped.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return tapped, reader

    with pytest.raises(StoreCheckError, match="outputs are others"):
        check_store(small.spec(open_teacher=other), 12)
    before = small.files()
    broken = sorted(small.path.glob("view-0001/*"))[1]
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(StoreCheckError, match="view-0001/shard-00001"):
        prepare(small)
    prepare(small, repair=True)
    after = small.files()
    assert {n: c for n, (_, c) in after.items()} == {n: c for n, (_, c) in before.items()}
    assert sum(after[name] != before[name] for name in after) == 1
