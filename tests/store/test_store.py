import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from krscale.config import StoreConfig, ViewsConfig, load
from krscale.data.loader import Loader
from krscale.errors import NonFiniteError, UserError
from krscale.files import write_json
from krscale.setup.prepare import _fallback
from krscale.store import (
    KnowledgeStore,
    building,
    check_store,
    make_shard,
    shard,
    teacher_inference,
    write_shards,
)
from krscale.store.manifest import FORMAT

# Exact, truncated, and rounded rows.
LAYOUTS = [(5, 0), (40, 4), (40, 0)]
SAMPLES = torch.tensor([49, 3, 3, 0, 17, 31, 32, 48, 16, 15])


def _flip(file, position=-200):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def _shards(small, view):
    return sorted((small.path / f"view-{view:04d}").iterdir())


class TestRoundTrip:
    @pytest.mark.parametrize("shard_rows", [16, 50, 1000, 1])
    def test_every_class_kept(self, small, shard_rows):
        small.config = StoreConfig(shard_rows=shard_rows, temperature=2.0, top_k=5)
        store = small.prepare()
        assert (store.num_views, store.num_taps, store.num_classes, store.top_k) == (3, 3, 5, 5)
        for view in (2, 0, 1):
            expected = torch.softmax(small.exact(view)[SAMPLES] / 2.0, -1)
            found = torch.softmax(store.tap_logits(view, SAMPLES).double() / 2.0, -1)
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6)

    def test_views_differ(self, small):
        store = small.prepare()
        first, second = (store.tap_logits(view, torch.arange(50)) for view in (0, 1))
        assert (first - second).abs().amax((1, 2)).gt(0.1).float().mean() > 0.5

    @pytest.mark.parametrize("config", [{"top_k": 4}, {"max_error": 0.04}])
    def test_error_of_the_manifest(self, small, config):
        small.num_classes = 40
        small.config = StoreConfig(shard_rows=16, temperature=2.0, **config)
        store = small.prepare()
        everyone = torch.arange(50)
        errors = []
        for view in range(3):
            exact = torch.softmax(small.exact(view) / 2.0, -1)
            found = torch.softmax(store.tap_logits(view, everyone).double() / 2.0, -1)
            errors.append(0.5 * (exact - found).abs().sum(-1))
        expected = torch.cat(errors).mean(0)
        assert expected.min() > 0.005
        np.testing.assert_allclose(store.manifest.encoding_error, expected.numpy(), atol=1e-5)
        plan = store.manifest.plan
        if "top_k" in config:
            assert store.top_k == 4
            assert plan.num_sampled == 1
        else:
            # All 50 rows of view 0 are the sample by which the layout was chosen.
            assert plan.layout.is_rounded
            assert plan.num_sampled == 50
            assert max(plan.sample_error) <= 0.04
            found = errors[0].mean(0).numpy()
            np.testing.assert_allclose(plan.sample_error, found, atol=1e-5)

    def test_the_layout_is_chosen_by_images_of_every_class(self, small, monkeypatch):
        small.num_classes, small.num_samples = 20, 60
        labels = small.dataset.split("train").labels
        asked, batches = [], teacher_inference.TeacherInference.batches

        def note(teacher, view, samples):
            asked.append(samples.numpy())
            return batches(teacher, view, samples)

        monkeypatch.setattr(teacher_inference.TeacherInference, "batches", note)
        monkeypatch.setattr(building, "SAMPLED_ROWS", 30)
        small.prepare()
        found = np.bincount(labels[asked[0]], minlength=20)
        assert (np.abs(found - np.bincount(labels, minlength=20) / 2) < 1).all()

    def test_shards_are_mapped_not_copied(self, small):
        store = small.prepare()
        store.tap_logits(0, SAMPLES)
        mapped = Path("/proc/self/maps").read_text()
        assert str(_shards(small, 0)[0]) in mapped
        rows = store._shards[0].values
        assert not rows.flags.owndata
        assert not rows.flags.writeable

    def test_other_programs_can_read_it(self, small):
        small.num_classes = 40
        small.config = StoreConfig(shard_rows=16, top_k=4)
        store = small.prepare()
        table = pa.ipc.open_file(_shards(small, 1)[2]).read_all()
        assert table.column_names == ["probabilities", "classes", "pixels"]
        classes = table["classes"].combine_chunks().to_numpy_ndarray()
        assert classes.shape == (16, 3, 4)
        kept = store.tap_logits(1, torch.arange(32, 48)).topk(4).indices
        assert torch.equal(kept.sort().values, torch.from_numpy(classes.astype(int)).sort()[0])

    @pytest.mark.parametrize("num_classes", [5, 40])
    def test_empty_batch(self, small, num_classes):
        small.num_classes = num_classes
        assert small.prepare().tap_logits(1, SAMPLES[:0]).shape == (0, 3, num_classes)

    def test_places_outside_the_store(self, small):
        store = small.prepare()
        for view in (-1, 3):
            with pytest.raises(IndexError, match=f"view {view} is not one of the 3"):
                store.tap_logits(view, SAMPLES)
        for sample in (-1, 50):
            with pytest.raises(IndexError, match=r"0\.\.49"):
                store.tap_logits(0, torch.tensor([0, sample]))

    def test_info_is_json(self, small):
        info = json.loads(json.dumps(small.prepare().info()))
        assert info["bytes_per_view_and_tap"] == pytest.approx((3 * 10 + 4) / 3)
        assert info["num_bytes"] == sum(f.stat().st_size for f in small.path.glob("*/*.arrow"))
        assert info["num_shards"] == 12
        assert info["fingerprints"] == small.key


MIXED = {
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.2, "cutmix": 1.0, "flip": True, "resized_crop": 0.3, "erasing": 0.5},
}


@pytest.mark.parametrize("fields", MIXED.values(), ids=MIXED)
def test_the_store_holds_what_the_teacher_says_of_the_images_that_students_see(small, fields):
    """Also of mixed ones: the teacher runs on a loader's batches, in another order and grouping."""
    small.views = ViewsConfig(num_views=2, shift=1, **fields)
    store = small.prepare()
    device = torch.device("cpu")
    loader = Loader(
        small.dataset, small.views, global_batch_size=7, seed=3, device=device, store=store
    )
    tapped, probes = (module.eval() for module in small.open_teacher())
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            with torch.no_grad():
                said = probes(tapped(batch.images)).softmax(dim=-1)
            assert batch.mixture is not None
            stored = batch.tap_logits.softmax(dim=-1)
            torch.testing.assert_close(stored, said, rtol=0.01, atol=0.002)
    assert check_store(small.spec(), 100).num_rows == 100


class TestBuild:
    def test_second_time_asks_nobody(self, small):
        small.prepare()
        assert small.num_opened == 1
        assert small.num_asked == 1 + 3 * 50
        before = small.files()
        small.prepare()
        assert small.num_opened == 1
        assert small.files() == before
        assert not (small.path / "plan.json").exists()

    def test_progress_counts_views_of_samples(self, small):
        small.prepare()
        done = [done for done, _ in small.reports]
        assert {total for _, total in small.reports} == {150}
        assert done == sorted(done)
        assert done[0] == 0
        assert done[-1] == 150

    def test_interrupted_build_continues(self, small):
        class InterruptionError(Exception):
            pass

        def interrupt(done, _total):
            if done > 70:
                raise InterruptionError

        with pytest.raises(InterruptionError):
            small.prepare(interrupt)
        with pytest.raises(UserError, match="no finished store"):
            KnowledgeStore.open(small.path)
        before = small.files()
        assert len(before) == 5
        small.num_asked = 0
        small.prepare()
        after = small.files()
        assert len(after) == 12
        assert {name: after[name] for name in before} == before
        # The rest of view 1 and all of view 2; the number of classes to keep was known.
        assert small.num_asked == 150 - 66
        uninterrupted = type(small)(small.folder / "other")
        uninterrupted.prepare()
        assert [c for _, c in uninterrupted.files().values()] == [c for _, c in after.values()]

    def test_broken_and_half_written_shards_of_an_unfinished_build_do_not_count(self, small):
        small.prepare()
        whole = small.files()
        manifest = json.loads((small.path / "manifest.json").read_text())
        plan = manifest["plan"] | {"format": manifest["format"]}
        (small.path / "manifest.json").rename(small.path / "old.json")
        (small.path / "plan.json").write_text(json.dumps(plan))
        _flip(_shards(small, 0)[1])
        cut = _shards(small, 1)[3]
        cut.write_bytes(cut.read_bytes()[:-1])
        (small.path / "view-0002" / ".shard-00000-ab.arrow.tmp").write_bytes(b"half")
        small.num_asked = 0
        small.prepare()
        assert small.num_asked == 16 + 2
        assert [content for _, content in small.files().values()] == [c for _, c in whole.values()]
        before, after = list(whole.values()), list(small.files().values())
        assert [a[0] == b[0] for a, b in zip(before, after, strict=True)].count(False) == 2

    def test_workers_may_write_shards(self, small):
        def write(shards):
            assert len(shards) == 12
            for part in (shards[1::2], shards[::2]):
                write_shards(small.spec(), part, lambda *_: None)

        small.prepare(write=write)
        assert small.num_opened == 3
        alone = type(small)(small.folder / "other")
        alone.prepare()
        assert [c for _, c in alone.files().values()] == [c for _, c in small.files().values()]

    def test_a_worker_that_wrote_nothing_is_noticed(self, small):
        with pytest.raises(UserError, match=r"12 broken shard\(s\).*view-0000/shard-00000"):
            small.prepare(write=lambda shards: None)
        assert not (small.path / "manifest.json").exists()

    def test_writing_where_nothing_was_begun(self, small):
        with pytest.raises(UserError, match="no store was begun here"):
            write_shards(small.spec(), [], lambda *_: None)

    def test_more_classes_than_there_are(self, small):
        small.config = StoreConfig(top_k=6)
        with pytest.raises(UserError, match="6 is more than the 5 classes"):
            small.prepare()
        assert small.num_opened == 0


class TestWrongStore:
    @pytest.mark.parametrize("name", ["teacher", "data"])
    @pytest.mark.parametrize("finished", [True, False])
    def test_another_key_names_the_fingerprint(self, small, name, finished):
        small.prepare()
        if not finished:
            manifest = json.loads((small.path / "manifest.json").read_text())
            (small.path / "plan.json").write_text(json.dumps(manifest["plan"] | {"format": FORMAT}))
            (small.path / "manifest.json").unlink()
        before = small.files()
        small.key = small.key | {name: "other"}
        with pytest.raises(UserError) as caught:
            small.prepare()
        text = str(caught.value)
        assert f"built from another {name}." in text
        assert f"{name}: the store has {name[0]}1, this run other" in text
        assert ("data:" in text) == (name == "data")
        assert small.files() == before
        assert small.num_opened == 1

    def test_open_compares_the_key(self, small):
        small.prepare()
        with pytest.raises(UserError, match="built from another taps"):
            KnowledgeStore.open(small.path, small.key | {"taps": "x"})

    def test_no_store(self, small):
        with pytest.raises(UserError, match="no finished store here"):
            KnowledgeStore.open(small.path)

    @pytest.mark.parametrize("text", ["{", "[]", f'{{"format": {FORMAT}}}'])
    def test_broken_manifest(self, small, text):
        small.prepare()
        (small.path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json: damaged: "):
            KnowledgeStore.open(small.path)

    def test_newer_format(self, small):
        small.prepare()
        file = small.path / "manifest.json"
        write_json(file, json.loads(file.read_text()) | {"format": FORMAT + 1})
        with pytest.raises(UserError, match="this version of krscale reads format"):
            KnowledgeStore.open(small.path)


class TestDamage:
    @pytest.mark.parametrize("position", [0, 500, -200, -1])
    def test_flipped_bit(self, small, position):
        store = small.prepare()
        _flip(_shards(small, 1)[2], position)
        with pytest.raises(UserError, match=r"1 broken shard\(s\).*: view-0001/shard-00002\. "):
            store.verify()
        with pytest.raises(UserError, match="view-0001/shard-00002"):
            small.prepare()

    @pytest.mark.parametrize("length", [0, 100, -1])
    def test_truncated(self, small, length):
        small.prepare()
        file = _shards(small, 2)[0]
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(UserError, match=r"view-0002/shard-00000.*--repair"):
            KnowledgeStore.open(small.path)

    def test_missing(self, small):
        small.prepare()
        _shards(small, 2)[0].unlink()
        with pytest.raises(UserError, match="view-0002/shard-00000"):
            KnowledgeStore.open(small.path)

    def test_repair_rebuilds_only_what_is_broken(self, small):
        small.prepare()
        before = small.files()
        _flip(_shards(small, 1)[2])
        _shards(small, 0)[3].unlink()
        small.num_asked = 0
        small.prepare(repair=True).verify()
        assert small.num_asked == 16 + 2
        after = small.files()
        assert [c for _, c in after.values()] == [c for _, c in before.values()]
        same = [after[name][0] == before[name][0] for name in before]
        assert same.count(False) == 2

    def test_repair_of_a_sound_store_asks_nobody(self, small):
        small.prepare()
        small.prepare(repair=True)
        assert small.num_opened == 1

    def test_repair_does_not_touch_another_store(self, small):
        small.prepare()
        _flip(_shards(small, 1)[2])
        before = small.files()
        small.key = {"teacher": "other", "data": "d1"}
        with pytest.raises(UserError, match="another teacher"):
            small.prepare(repair=True)
        assert small.files() == before


class TestDiskFull:
    def test_before_building(self, small, monkeypatch):
        usage = type("Usage", (), {"free": 1000})
        monkeypatch.setattr(building.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match="needs 0 MB more and the disk has 0 MB free"):
            small.prepare()
        assert small.files() == {}
        monkeypatch.undo()
        small.prepare()

    def test_while_building(self, small, monkeypatch):
        write, count = shard._write_bytes, 0

        def fill(file, content):
            nonlocal count
            count += 1
            if count == 4:
                write(file, memoryview(content)[:100])
                raise OSError(28, "No space left on device")
            write(file, content)

        monkeypatch.setattr(shard, "_write_bytes", fill)
        with pytest.raises(UserError, match=r"view-0000/shard-00003-.*: the disk is full"):
            small.prepare()
        kept = small.files()
        assert len(kept) == 3
        monkeypatch.undo()
        small.num_asked = 0
        small.prepare().verify()
        assert small.num_asked == 150 - 48
        assert {name: small.files()[name] for name in kept} == kept


class TestCheck:
    def _check(self, small, **changes):
        num_rows = changes.pop("num_rows", 512)
        return check_store(small.spec(**changes), num_rows)

    @pytest.mark.parametrize(("num_classes", "top_k"), LAYOUTS)
    def test_passes(self, small, num_classes, top_k):
        small.num_classes = num_classes
        small.config = StoreConfig(shard_rows=16, temperature=2.0, top_k=top_k)
        small.prepare()
        check = self._check(small)
        assert (check.num_shards, check.num_rows) == (12, 150)
        assert check.max_difference > 0
        assert self._check(small, num_rows=7).num_rows == 6

    def test_one_pixel_of_the_views_is_caught(self, small, monkeypatch):
        small.prepare()
        apply_views = teacher_inference.apply_views

        def changed(images, samples, view, policy):
            views = apply_views(images, samples, view, policy)
            if view == 1:
                views[samples == 7, 0, 2, 3] ^= 1
            return views

        monkeypatch.setattr(teacher_inference, "apply_views", changed)
        with pytest.raises(UserError, match=r"pixels of view 1 of sample 7 \(and 0 more of 50\)"):
            self._check(small)

    def test_another_policy_under_the_same_key_is_caught(self, small):
        small.prepare()
        with pytest.raises(UserError, match="the pixels of view 0 of sample"):
            self._check(small, views=ViewsConfig(num_views=3, shift=1, seed=1))

    @pytest.mark.parametrize(("num_classes", "top_k"), LAYOUTS)
    @pytest.mark.parametrize("part", ["model.0.weight", "linears.1.bias"])
    def test_another_teacher_under_the_same_key_is_caught(self, small, part, num_classes, top_k):
        small.num_classes = num_classes
        small.config = StoreConfig(shard_rows=16, temperature=2.0, top_k=top_k)
        small.prepare()
        opened = small.open_teacher

        def changed():
            tapped, probes = opened()
            for module in (tapped, probes):
                if part in module.state_dict():
                    # Every second class or channel: one class alone may be in no row's top k.
                    module.state_dict()[part][::2] += 0.3
            return tapped, probes

        small.open_teacher = changed
        with pytest.raises(
            UserError, match=r"the teacher's outputs are others now: they differ by up to"
        ):
            self._check(small)

    def test_another_key(self, small):
        small.prepare()
        with pytest.raises(UserError, match="another teacher"):
            self._check(small, key={"teacher": "x", "data": "d1"})

    def test_broken_shard(self, small):
        small.prepare()
        _flip(_shards(small, 0)[0])
        with pytest.raises(UserError, match="view-0000/shard-00000"):
            self._check(small)


class TestProcesses:
    """Real processes, because a lock between threads of one process proves little."""

    def _start(self, small, *arguments):
        script = Path(__file__).with_name("slow_build.py")
        small.dataset  # noqa: B018 - written before the first process starts, then only read
        return subprocess.Popen(
            [sys.executable, str(script), str(small.folder), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _go(self, *processes):
        for process in processes:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()

    def _finish(self, process):
        # Not `communicate`, which would miss what `readline` has read ahead.
        with process:
            output, errors = process.stdout.read(), process.stderr.read()
        assert process.returncode == 0, errors
        return output.splitlines()

    def test_one_builds_and_the_other_waits_with_progress(self, small):
        both = self._start(small, 0.1, "twice")
        self._go(both)
        outputs = "\n".join(self._finish(both)).strip().split("\n\n")
        waited, built = sorted((each.splitlines() for each in outputs), key=lambda o: o[-1])
        assert waited[-1] == "opened 0 asked 0"
        assert built[-1] == "opened 1 asked 151"
        done = [int(line.split()[1]) for line in waited[:-1]]
        assert done == sorted(done)
        assert any(0 < count < 150 for count in done)
        KnowledgeStore.open(small.path, small.key).verify()

    @pytest.mark.drill
    def test_the_other_takes_over_when_the_builder_is_killed(self, small, drill):
        drill.injected("SIGKILL to a process that builds a store, while another one waits for it")
        drill.must_hold("the other builds what is missing, and keeps what was written")
        # It hangs after it runs the teacher for the third shard, before it writes that shard.
        builder, waiting = self._start(small, 0, 48), self._start(small, 0)
        self._go(builder)
        while builder.stdout.readline() != "report 48 150\n":
            assert builder.poll() is None, builder.stderr.read()
        self._go(waiting)
        assert waiting.stdout.readline() == "report 32 150\n"
        kept = small.files()
        assert len(kept) == 2
        with builder:
            builder.kill()
        assert self._finish(waiting)[-1] == "opened 1 asked 118"
        assert {name: small.files()[name] for name in kept} == kept
        KnowledgeStore.open(small.path, small.key).verify()
        drill.held("two shards were kept, the other built the rest")


def test_a_teacher_that_gives_nan_for_some_view_is_named_before_anything_is_kept(small):
    sound = small.open_teacher

    def broken():
        tapped, probes = sound()
        with torch.no_grad():
            tapped.model[-1].bias[2] = float("nan")
        return tapped, probes

    small.open_teacher = broken
    with pytest.raises(NonFiniteError, match=r"teacher: what it gives .* cannot teach"):
        small.prepare()
    assert small.files() == {}


class TestTeacherInBf16:
    def test_it_runs_so_where_the_error_stays_within_its_bound(self, small):
        small.config = StoreConfig(shard_rows=16, temperature=2.0, teacher_precision="bf16")
        store = small.prepare()
        assert store.manifest.plan.precision == "bf16"
        assert store.manifest.plan.num_sampled == small.num_samples
        for view in range(small.views.num_views):
            exact = torch.softmax(small.exact(view) / 2.0, dim=-1)
            samples = torch.arange(small.num_samples)
            kept = torch.softmax(store.tap_logits(view, samples) / 2.0, dim=-1)
            error = 0.5 * (exact - kept).abs().sum(dim=-1).mean(dim=0)
            # Rounding to fp16 alone costs some 1e-4.
            assert 5e-4 < float(error.max()) < small.config.max_error
        check_store(small.spec())

    def test_every_way_to_write_shards_computes_in_it(self, small, tmp_path):
        small.config = StoreConfig(shard_rows=16, temperature=2.0, teacher_precision="bf16")
        store = small.prepare()
        plan, alone = store.manifest.plan, {k: v for k, (_, v) in small.files().items()}
        for wanted in plan.shards:
            made = make_shard(small.spec(), plan, wanted)
            assert (small.path / made.file).read_bytes() == made.content
        for file in small.path.glob("view-*/*"):
            file.unlink()
        write_shards(small.spec(), plan.shards, lambda done, total: None)
        assert {k: v for k, (_, v) in small.files().items()} == alone

    def test_it_runs_in_fp32_where_bf16_costs_more_and_that_is_said(self, small):
        plain = small.prepare()
        before = small.files()
        small.folder /= "other"
        small.config = StoreConfig(
            shard_rows=16, temperature=2.0, teacher_precision="bf16", max_error=1e-4
        )
        store = small.prepare()
        assert store.manifest.plan.precision == plain.manifest.plan.precision == "fp32"
        assert [c for _, c in small.files().values()] == [c for _, c in before.values()]
        wanted = ["store.teacher_precision=bf16", "store.max_error=0.0001"]
        said = _fallback(load(None, wanted), small.path)
        assert said.startswith("store.teacher_precision: bf16 would cost a tap more than")
        assert "on 50 sampled views" in said
        assert not _fallback(load(None, []), small.path)

    def test_stores_of_before_are_found_again(self):
        assert "teacher_precision" not in StoreConfig().identity()
        assert StoreConfig(teacher_precision="bf16").identity()["teacher_precision"] == "bf16"
