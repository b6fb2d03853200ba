"""A student in MLflow's registry: loaded by its alias, once, also when MLflow was away."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from krscale.files import sha256
from krscale.tracking import HASH_TAG, Registration, Tracker, save_onnx_model, sync
from krscale.tracking.models import require_whole
from krscale.tracking.refusals import Refused

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture
def model(tmp_path):
    """An ONNX file that sums the pixels of a `[B, 1, 2, 2]` image into one of two logits."""
    return write_model(tmp_path / "student.onnx", num_unused=0)


def write_model(path, num_unused):
    shape = [["batch", 1, 2, 2], ["batch", 2]]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "student",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape[0])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape[1])],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, [4, 2], [1, 0] * 4),
            numpy_helper.from_array(np.ones(num_unused, np.float32), "unused"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, path)
    return path


def registration_of(model):
    return Registration("krscale-digits", "size-1-16", {HASH_TAG: sha256(model)}, "at 1/16")


def test_what_is_saved_is_the_exported_file_and_nothing_else_is_registered(tmp_path):
    # MLflow would put weights of more than a kilobyte into a file of their own.
    model, folder = write_model(tmp_path / "student.onnx", num_unused=1000), tmp_path / "saved"
    save_onnx_model(model, folder, (1, 2, 2), 2)
    saved, digest = folder / "model.onnx", sha256(model)
    assert saved.read_bytes() == model.read_bytes()
    require_whole(folder, digest)
    content = bytearray(saved.read_bytes())
    content[-100] ^= 1
    saved.write_bytes(content)
    with pytest.raises(Refused, match=r"model\.onnx is not the file that was exported"):
        require_whole(folder, digest)
    saved.unlink()
    with pytest.raises(Refused, match="no such file"):
        require_whole(folder, digest)


def test_a_model_with_another_byte_than_its_digest_tells_is_not_registered(storage, model):
    folder, uri = storage / "run" / "registered" / "1-16-kr", f"sqlite:///{storage}/mlflow.db"
    save_onnx_model(model, folder, (1, 2, 2), 2)
    with (folder / "model.onnx").open("r+b") as file:
        file.write(b"\0")  # while the model waits in the spool
    with Tracker(uri, "digits", storage / "run", warn=lambda _: None) as tracker:
        tracker.start_run("kr", "digits kr")
        tracker.register_model("kr", folder, registration_of(model))
    assert tracker.num_refused == 1

    import mlflow

    assert not mlflow.MlflowClient(uri).search_registered_models()


def test_a_student_is_loaded_by_its_size_and_registered_once(storage, model):
    wanted = registration_of(model)
    folder = storage / "run" / "registered" / "1-16-kr"
    save_onnx_model(model, folder, (1, 2, 2), 2)
    tracker = Tracker("http://127.0.0.1:9", "digits", storage / "run", warn=lambda _: None)
    tracker.start_run("kr", "digits kr")
    tracker.register_model("kr", folder, wanted)
    assert tracker.close(2) == 2, "MLflow is away"
    uri = f"sqlite:///{storage}/mlflow.db"
    assert sync(storage / "run", uri) == 0
    with Tracker(uri, "digits", storage / "run") as tracker:
        tracker.register_model("kr", folder, wanted)
    assert tracker.num_refused == 0

    import mlflow

    before = mlflow.get_tracking_uri()
    client = mlflow.MlflowClient(uri)
    (version,) = client.search_model_versions("name='krscale-digits'")
    by_alias = client.get_model_version_by_alias("krscale-digits", "size-1-16")
    assert by_alias.version == version.version
    assert client.get_run(version.run_id).info.run_name == "digits kr"
    try:
        mlflow.set_tracking_uri(uri)
        loaded = mlflow.pyfunc.load_model(wanted.uri)
    finally:
        mlflow.set_tracking_uri(before)
    assert loaded.metadata.signature.inputs.input_names() == ["images"]
    assert loaded.input_example["images"].shape == (1, 1, 2, 2)
    images = np.ones((3, 1, 2, 2), np.float32)
    np.testing.assert_allclose(loaded.predict({"images": images})["logits"], [[4, 0]] * 3)
    assert not list(folder.rglob("*.pkl"))
