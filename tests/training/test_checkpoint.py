import json
import pickle
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from krscale.errors import DiskFullError, UserError
from krscale.files import write_json
from krscale.training.checkpoint import (
    load_checkpoint,
    load_weights,
    read_metadata,
    read_weights,
    save_checkpoint,
    save_weights,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 102530333\n"


def _state():
    return {
        "model": {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7)},
        "optimiser": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "nesterov": True}]},
        "random": torch.random.get_rng_state(),
        "epoch": 3,
        "name": "digits",
        "best": None,
    }


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class _Code:
    def __reduce__(self):
        return (print, ("code ran",))


class TestCheckpoint:
    def test_round_trip_keeps_values_and_types(self, tmp_path):
        state = _state()
        save_checkpoint(tmp_path / "c", state)
        loaded = load_checkpoint(tmp_path / "c")
        assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
        assert loaded["model"]["weight"].dtype == torch.float32
        assert torch.equal(loaded["random"], state["random"])
        assert loaded["optimiser"] == state["optimiser"]
        assert (loaded["epoch"], loaded["name"], loaded["best"]) == (3, "digits", None)

    def test_optimiser_continues_exactly(self, tmp_path):
        def trained(steps, model, optimiser, start=0):
            for step in range(start, start + steps):
                inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
                optimiser.zero_grad()
                model(inputs).square().sum().backward()
                optimiser.step()

        whole = _network()
        trained(6, whole, torch.optim.SGD(whole.parameters(), lr=0.01, momentum=0.9))
        first = _network()
        optimiser = torch.optim.SGD(first.parameters(), lr=0.01, momentum=0.9)
        trained(3, first, optimiser)
        path = tmp_path / "c"
        save_checkpoint(path, {"model": first.state_dict(), "sgd": optimiser.state_dict()})
        second = _network()
        state = load_checkpoint(path)
        second.load_state_dict(state["model"])
        optimiser = torch.optim.SGD(second.parameters(), lr=0.5)
        optimiser.load_state_dict(state["sgd"])
        trained(3, second, optimiser, start=3)
        for key, value in whole.state_dict().items():
            assert torch.equal(value, second.state_dict()[key]), key

    def test_replaces_an_older_checkpoint_and_leaves_nothing_beside_it(self, tmp_path):
        save_checkpoint(tmp_path / "c", {"epoch": 1})
        save_checkpoint(tmp_path / "c", {"epoch": 2})
        assert load_checkpoint(tmp_path / "c") == {"epoch": 2}
        assert [p.name for p in tmp_path.iterdir()] == ["c"]

    def test_failed_save_keeps_the_older_one(self, tmp_path, monkeypatch):
        save_checkpoint(tmp_path / "c", {"epoch": 1})

        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(DiskFullError, match="disk is full"):
            save_checkpoint(tmp_path / "c", {"epoch": 2})
        assert load_checkpoint(tmp_path / "c") == {"epoch": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["c"]

    def test_refuses_what_only_pickle_could_read_back(self, tmp_path):
        with pytest.raises(TypeError, match=r"state\['a'\]\[1\].*a checkpoint cannot hold a _Code"):
            save_checkpoint(tmp_path / "c", {"a": [1, _Code()]})
        assert not (tmp_path / "c").exists()

    @pytest.mark.parametrize("change", ["flip", "truncate", "append"])
    def test_broken_state_is_named(self, tmp_path, change):
        save_checkpoint(tmp_path / "c", _state())
        file = tmp_path / "c" / "state.pt"
        content = bytearray(file.read_bytes())
        if change == "flip":
            content[len(content) // 2] ^= 1
        elif change == "truncate":
            del content[-1:]
        else:
            content.append(0)
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"state\.pt: broken: its SHA-256"):
            load_checkpoint(tmp_path / "c")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "files": {}}', '{"files": 3'])
    def test_broken_manifest_is_named(self, tmp_path, text):
        save_checkpoint(tmp_path / "c", {"epoch": 1})
        (tmp_path / "c" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json: damaged: "):
            load_checkpoint(tmp_path / "c")

    def test_missing_parts_are_named(self, tmp_path):
        with pytest.raises(UserError, match="not a checkpoint"):
            load_checkpoint(tmp_path / "c")
        save_checkpoint(tmp_path / "c", {"epoch": 1})
        (tmp_path / "c" / "state.pt").unlink()
        with pytest.raises(UserError, match=r"state\.pt: missing"):
            load_checkpoint(tmp_path / "c")

    def test_a_newer_format_is_refused(self, tmp_path):
        save_checkpoint(tmp_path / "c", {"epoch": 1})
        file = tmp_path / "c" / "manifest.json"
        write_json(file, json.loads(file.read_text()) | {"format": 2})
        with pytest.raises(UserError, match="format 2; this version of krscale reads format 1"):
            load_checkpoint(tmp_path / "c")


class TestSaveWeights:
    def test_round_trip_with_metadata(self, tmp_path):
        path = tmp_path / "student.safetensors"
        metadata = {"classes": ["a", "b"], "mean": [0.5], "width": 3, "name": "ü"}
        save_weights(path, _network(), metadata)
        assert read_metadata(path) == metadata
        other = _network()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        load_weights(path, other)
        for key, value in _network().state_dict().items():
            assert torch.equal(other.state_dict()[key], value), key

    def test_equal_content_gives_equal_bytes(self, tmp_path):
        for name in ("a", "b"):
            save_weights(tmp_path / f"{name}.safetensors", _network(), {"x": 1, "y": 2, "z": 3})
        assert (tmp_path / "a.safetensors").read_bytes() == (
            tmp_path / "b.safetensors"
        ).read_bytes()

    def test_tied_and_channels_last_weights(self, tmp_path):
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 4), nn.Linear(4, 4))
        model.to(memory_format=torch.channels_last)
        model[2].weight = model[1].weight
        save_weights(tmp_path / "w.safetensors", model, {})
        state = read_weights(tmp_path / "w.safetensors")
        assert torch.equal(state["0.weight"], model[0].weight)
        assert torch.equal(state["2.weight"], model[1].weight)

    def test_metadata_of_other_programs_is_empty(self, tmp_path):
        save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
        assert read_metadata(tmp_path / "w.safetensors") == {}


class TestReadWeights:
    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
    @pytest.mark.parametrize("suffix", [".pt", ".pth"])
    def test_wrappers_and_prefixes_are_taken_off(self, tmp_path, wrapper, prefix, suffix):
        expected = _network().state_dict()
        content = {prefix + key: value for key, value in expected.items()}
        if wrapper:
            content = {"epoch": 9, wrapper: content, "optimizer": {"state": {}}}
        path = tmp_path / f"teacher{suffix}"
        torch.save(content, path)
        state = read_weights(path)
        assert list(state) == list(expected)
        assert all(torch.equal(state[key], expected[key]) for key in expected)

    def test_a_lightning_checkpoint_with_arguments(self, tmp_path):
        state = {f"model.{key}": value for key, value in _network().state_dict().items()}
        content = {
            "epoch": 3, "state_dict": state, "hyper_parameters": {"args": Namespace(lr=0.1)},
            "pytorch-lightning_version": "2.5.0", "optimizer_states": [{"state": {}}],
        }  # fmt: skip
        torch.save(content, tmp_path / "last.ckpt")
        model = _network()
        nn.init.zeros_(model[0].weight)
        notes = load_weights(tmp_path / "last.ckpt", model, "teacher.weights")
        assert torch.equal(model[0].weight, _network()[0].weight)
        assert "without their beginning 'model.'" in " ".join(notes)

    def test_a_submodule_called_model_is_not_a_wrapper(self, tmp_path):
        model = nn.ModuleDict({"model": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        torch.save(model.state_dict(), tmp_path / "w.pt")
        assert list(read_weights(tmp_path / "w.pt")) == list(model.state_dict())

    def test_code_does_not_run(self, tmp_path, capsys):
        torch.save({"weight": _Code()}, tmp_path / "w.pt")
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Code()))
        for name in ("w.pt", "plain.pt"):
            with pytest.raises(UserError, match=r"teacher\.weights: .*holds more than tensors"):
                read_weights(tmp_path / name, "teacher.weights")
        assert capsys.readouterr().out == ""

    def test_a_whole_module_is_refused(self, tmp_path):
        torch.save(_network(), tmp_path / "w.pt")
        with pytest.raises(UserError, match="Save the weights alone"):
            read_weights(tmp_path / "w.pt")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([torch.ones(1)], "not a state dict but a list"),
            (torch.ones(1), "not a state dict but a Tensor"),
            ({"epoch": 3, "w": torch.ones(1)}, "'epoch' holds a int"),
            ({"notes": {"w": "x"}}, "'notes' holds a dict"),
            ({}, "an empty state dict"),
        ],
    )
    def test_not_a_state_dict(self, tmp_path, content, message):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path / "w.pt")

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"\x00", b"hello world", bytes(range(256)) * 9])
    def test_garbage(self, tmp_path, suffix, content):
        (tmp_path / f"w{suffix}").write_bytes(content)
        with pytest.raises(UserError, match=rf"w\{suffix}"):
            read_weights(tmp_path / f"w{suffix}")

    def test_truncated(self, tmp_path):
        torch.save(_network().state_dict(), tmp_path / "w.pt")
        save_weights(tmp_path / "w.safetensors", _network(), {})
        for name in ("w.pt", "w.safetensors"):
            content = (tmp_path / name).read_bytes()
            for length in range(0, len(content), max(1, len(content) // 60)):
                (tmp_path / name).write_bytes(content[:length])
                with pytest.raises(UserError, match=name):
                    read_weights(tmp_path / name)

    def test_any_flipped_byte_reads_or_is_a_user_error(self, tmp_path):
        torch.save({"w": torch.ones(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
        content = (tmp_path / "w.pt").read_bytes()
        refused = 0
        for position in range(len(content)):
            broken = bytearray(content)
            broken[position] ^= 0x15
            (tmp_path / "w.pt").write_bytes(broken)
            try:
                read_weights(tmp_path / "w.pt")
            except UserError:
                refused += 1
        assert refused > len(content) // 2

    def test_missing_file_names_the_nearest(self, tmp_path):
        (tmp_path / "teacher.pt").touch()
        with pytest.raises(UserError, match=r"no such file\. Did you mean .*teacher\.pt"):
            read_weights(tmp_path / "techer.pt")

    def test_a_link_that_leads_nowhere_is_not_its_own_nearest(self, tmp_path):
        (tmp_path / "teacher.pt").symlink_to("gone.pt")
        with pytest.raises(UserError, match=r"a link to gone\.pt, which is not there\.$"):
            read_weights(tmp_path / "teacher.pt")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "best.pyth", "last", "w.SAFETENSORS"])
    @pytest.mark.parametrize("write", [torch.save, save_file])
    def test_the_name_of_a_file_says_nothing(self, tmp_path, name, write):
        """As Hugging Face, PySlowFast and many scripts name their files."""
        expected = _network().state_dict()
        write(expected, tmp_path / name)
        state = read_weights(tmp_path / name)
        assert all(torch.equal(state[key], expected[key]) for key in expected)

    def test_a_pickle_of_something_else(self, tmp_path):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps({"0.weight": [1.0, 2.0]}))
        with pytest.raises(UserError, match=r"w\.pkl: .*a pickle that torch.save has not written"):
            read_weights(tmp_path / "w.pkl")

    def test_a_download_that_broke_off(self, tmp_path):
        torch.save(_network().state_dict(), tmp_path / "w.pt")
        content = (tmp_path / "w.pt").read_bytes()
        (tmp_path / "w.pt").write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match="as after a download that broke off"):
            read_weights(tmp_path / "w.pt")

    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
    @pytest.mark.parametrize(
        ("content", "said"),
        [(POINTER, "`git lfs pull` brings"), (b"\n<!DOCTYPE html>\n<html>", "it is a web page")],
    )  # fmt: skip
    def test_what_stands_in_the_place_of_the_file(self, tmp_path, name, content, said):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=said) as error:
            read_weights(tmp_path / name, "teacher.weights")
        assert str(error.value).startswith(f"teacher.weights: {tmp_path / name}: ")


class TestLoadWeights:
    def test_every_mismatch_is_named_with_both_shapes(self, tmp_path):
        state = _network().state_dict()
        state["0.weight"] = torch.zeros(5, 3)
        state["2.bais"] = state.pop("2.bias")
        save_weights(tmp_path / "w.safetensors", state, {})
        with pytest.raises(UserError) as caught:
            load_weights(tmp_path / "w.safetensors", _network(), "teacher.weights")
        text = str(caught.value)
        assert text.startswith("teacher.weights: ")
        assert "0.weight has shape [5, 3], the model [4, 3]" in text
        assert "missing: 2.bias (nearest: 2.bais)" in text
        assert "unexpected: 2.bais (nearest: 2.bias)" in text

    @pytest.mark.parametrize(
        ("dtype", "name"),
        [(torch.int8, "int8"), (torch.uint8, "uint8"), (torch.int64, "int64"),
         (torch.bool, "bool"), (torch.complex64, "complex64"),
         (torch.float8_e4m3fn, "float8_e4m3fn"), (torch.float8_e5m2, "float8_e5m2")],
    )  # fmt: skip
    def test_numbers_that_need_scales_are_no_weights(self, tmp_path, dtype, name):
        """Copied to floating point, a quantised network's numbers would be wrong as weights."""
        state = _network().state_dict()
        state["0.weight"] = (10.0 * state["0.weight"]).to(dtype)
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(UserError, match=rf"0\.weight is in {name}, the model's in float32"):
            load_weights(tmp_path / "w.pt", _network(), "teacher.weights")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_another_precision_is_taken(self, tmp_path, dtype):
        state = {key: value.to(dtype) for key, value in _network().state_dict().items()}
        torch.save(state, tmp_path / "w.pt")
        model = _network()
        nn.init.zeros_(model[0].weight)
        load_weights(tmp_path / "w.pt", model, "teacher.weights")
        assert model[0].weight.dtype == torch.float32
        assert torch.allclose(model[0].weight, _network()[0].weight, rtol=0.01)

    def test_a_count_may_be_kept_in_floating_point_but_no_index(self, tmp_path):
        norm = nn.BatchNorm1d(2)
        state = {key: value.float() for key, value in norm.state_dict().items()}
        torch.save(state, tmp_path / "w.pt")
        load_weights(tmp_path / "w.pt", norm)
        state["num_batches_tracked"] += 0.5
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(UserError, match="batches_tracked is in float32, the model's in int64"):
            load_weights(tmp_path / "w.pt", norm)

    def test_a_mismatch_changes_nothing(self, tmp_path):
        save_weights(tmp_path / "w.safetensors", {"0.weight": torch.zeros(4, 3)}, {})
        model = _network()
        with pytest.raises(UserError, match="missing"):
            load_weights(tmp_path / "w.safetensors", model)
        assert torch.equal(model[0].weight, _network()[0].weight)

    def test_long_lists_are_shortened(self, tmp_path):
        wide = {f"layer{n}.weight": torch.zeros(1) for n in range(500)}
        save_weights(tmp_path / "w.safetensors", wide, {})
        with pytest.raises(UserError, match="and 492 more") as caught:
            load_weights(tmp_path / "w.safetensors", _network())
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("model_ema", lambda w, o: {"model": o, "model_ema": _renamed(w, "backbone.")}),
        ("model_ema", lambda w, o: {"model_ema": _renamed(w, "module.backbone.")}),
        ("model_ema.backbone", lambda w, o: {"model_ema": _renamed(w, "backbone.")}),
        ("ema", lambda w, o: {"ema": w}),
        ("ema", lambda w, o: o | _renamed(w, "ema.")),
        ("ema.", lambda w, o: _renamed(o, "student.") | _renamed(w, "ema.module.")),
        ("ema", lambda w, o: _renamed(o, "module.student.") | _renamed(w, "module.ema.")),
        ("ema", lambda w, o: {"state_dict": _renamed(o, "student.") | _renamed(w, "ema.")}),
        ("ema", lambda w, o: _renamed(o, "") | _renamed(w, "ema.backbone.")),
        ("module", lambda w, o: o | _renamed(w, "module.")),
        ("module", lambda w, o: _renamed(w, "module.")),
    ],
)
def test_the_key_chooses_among_the_weights_of_a_file(tmp_path, key, content):
    wanted, other = _network().state_dict(), _network().state_dict()
    for state, value in ((wanted, 2.0), (other, 3.0)):
        for tensor in state.values():
            tensor.fill_(value)
    torch.save(content(wanted, other), tmp_path / "w.pt")
    model = _network()
    load_weights(tmp_path / "w.pt", model, "teacher.weights", key)
    assert all(bool((tensor == 2).all()) for tensor in model.state_dict().values())
    with pytest.raises(UserError, match=r"teacher\.weights_key: no weights under 'nothing'"):
        load_weights(tmp_path / "w.pt", model, "teacher.weights", "nothing")


def _renamed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def test_a_file_may_hold_masks_of_minus_infinity(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    save_weights(tmp_path / "w.safetensors", model)
    load_weights(tmp_path / "w.safetensors", model)
    with torch.no_grad():
        model.bias[0] = -torch.inf
    save_weights(tmp_path / "w.safetensors", model)
    with pytest.raises(UserError, match=r"NaN or infinity in bias\."):
        load_weights(tmp_path / "w.safetensors", model)
