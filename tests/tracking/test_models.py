"""A student in MLflow's registry: loaded by its alias, once, also when MLflow was away."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from krscale.tracking import HASH_TAG, Registration, Tracker, save_onnx_model, sync

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
WANTED = Registration("krscale-digits", "size-1-16", {HASH_TAG: "f00d"}, "the best at 1/16")


@pytest.fixture
def model(tmp_path):
    """An ONNX file that sums the pixels of a `[B, 1, 2, 2]` image into one of two logits."""
    shape = [["batch", 1, 2, 2], ["batch", 2]]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "student",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape[0])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape[1])],
        [helper.make_tensor("weights", TensorProto.FLOAT, [4, 2], [1, 0] * 4)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, tmp_path / "student.onnx")
    return tmp_path / "student.onnx"


def test_a_student_is_loaded_by_its_size_and_registered_once(storage, model):
    folder = storage / "run" / "registered" / "1-16-kr"
    save_onnx_model(model, folder, (1, 2, 2), 2)
    tracker = Tracker("http://127.0.0.1:9", "digits", storage / "run", warn=lambda _: None)
    tracker.start_run("kr", "digits kr")
    tracker.register_model("kr", folder, WANTED)
    assert tracker.close(2) == 2, "MLflow is away"
    uri = f"sqlite:///{storage}/mlflow.db"
    assert sync(storage / "run", uri) == 0
    with Tracker(uri, "digits", storage / "run") as tracker:
        tracker.register_model("kr", folder, WANTED)
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
        loaded = mlflow.pyfunc.load_model(WANTED.uri)
    finally:
        mlflow.set_tracking_uri(before)
    assert loaded.metadata.signature.inputs.input_names() == ["images"]
    assert loaded.input_example["images"].shape == (1, 1, 2, 2)
    images = np.ones((3, 1, 2, 2), np.float32)
    np.testing.assert_allclose(loaded.predict({"images": images})["logits"], [[4, 0]] * 3)
    assert not list(folder.rglob("*.pkl"))
