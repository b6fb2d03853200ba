"""No file of a run folder holds a password, and a job's id is found where Ray puts it."""

import json
import sys

import pytest

from krscale.config import load
from krscale.redaction import redact
from krscale.runs.experiment_file import read_experiment
from krscale.runs.folder import run_folder
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no cluster at 'user:hunter22@10.0.0.1:6379'", "no cluster at '***@10.0.0.1:6379'"),
        ("user:hunter22@127.0.0.1:9: Name or service", "***@127.0.0.1:9: Name or service"),
        ("hunter22@head.example:6379", "***@head.example:6379"),
        ("address=user:hunter22@head:6379", "address=***@head:6379"),
        ("user:hun/ter22@[::1]:6379", "***@[::1]:6379"),
        ("(user:hunter22@localhost:80)", "(***@localhost:80)"),
        ("ray://user:hunter22@head:10001", "ray://***@head:10001"),
        ("abfs://account:hunter22@container/x", "abfs://***@container/x"),
        ("abfs://one@hunter22@container/x", "abfs://***@container/x"),
        ("s3://hunter22@bucket/x", "s3://***@bucket/x"),
        ("gs://hunter22@bucket/x", "gs://***@bucket/x"),
    ],
)
def test_credentials_of_an_address_are_hidden_with_and_without_a_scheme(
    text: str, shown: str
) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://mlflow.example:5000/#/experiments/1",
        "/storage/run/unfinished/plain@1-16/0/state.pt: damaged",
        "/data/photos@v1.2:3",
        "somebody@mail.example",
        "git@host.example:team/krscale.git",
        "127.0.0.1:6379",
        "storage_path: abfs://container@account.dfs.core.windows.net/x: cannot write",
        "gs://anonymous@bucket/x",
        "kr/1-16/trial-0: 12:30",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redact(text) == text
