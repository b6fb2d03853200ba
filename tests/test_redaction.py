"""No file of a run folder holds a password, and a job's id is found where Ray puts it."""

import json
import sys

from krscale.config import load
from krscale.runs.folder import read_experiment, run_folder
from krscale.runs.origin import ray_job


def test_password_of_the_tracking_uri_is_in_no_file(tmp_path, monkeypatch):
    setting = "tracking.uri=http://user:hunter22@mlflow.example:5000"
    monkeypatch.setattr(sys, "argv", ["krscale", "tune", "--set", setting])
    experiment = load(None, [setting, f"storage_path={tmp_path}", "name=run"])
    for _ in range(2):
        with run_folder(experiment, {}) as folder:
            pass
    texts = [file.read_text() for file in folder.rglob("*") if file.is_file()]
    assert any("***@mlflow.example:5000" in text for text in texts)
    assert not any("hunter22" in text for text in texts)
    assert read_experiment(folder).tracking.uri == "http://***@mlflow.example:5000"


def test_job_that_was_submitted_is_known(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert ray_job() == ""
    config = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert ray_job() == "raysubmit_1"
