import pytest

from krscale.errors import UserError
from krscale.redaction import redact
from krscale.tracking.address import resolve_address


def test_the_default_is_a_database_beside_the_runs(tmp_path):
    address = resolve_address("", tmp_path)
    assert address.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert address.uri.startswith("sqlite:////")
    assert address.artifact_root == tmp_path / "mlartifacts"
    assert address.database_file == tmp_path / "mlflow.db"


def test_a_relative_database_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = resolve_address("sqlite:///sqlite.db?timeout=5", tmp_path / "runs")
    assert address.uri == f"sqlite:///{tmp_path}/sqlite.db?timeout=5"


@pytest.mark.parametrize("uri", ["http://10.0.0.1:5000/", "https://host/mlflow", "databricks"])
def test_servers_keep_their_own_artifacts(uri, tmp_path):
    address = resolve_address(uri, tmp_path)
    assert address.uri == uri.rstrip("/")
    assert address.artifact_root is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlruns", r"is a folder, and MLflow no longer keeps runs in folders"),
        ("file:///tmp/mlruns", r"is a folder"),
        ("htpp://host:5000", r"unknown MLflow URI scheme 'htpp'. Did you mean 'http'\? Allowed: "),
        ("http://", r"names no host"),
        ("http://host:port", r"is not a URL"),
        ("http://host:99999", r"is not a URL"),
        ("sqlite://", r"names no file"),
        ("sqlite:///:memory:", r"names no file"),
        ("postgresql://host/db", r"needs a database driver that is not installed: No module"),
        ("mysql+nonsense://host/db", r"needs a database driver"),
        ("sqlite:////dev/null/mlflow.db", r"/dev/null/mlflow.db cannot be written"),
        ("sqlite:////tmp", r"/tmp cannot be written as a database"),
        ("postgresql://ho:st:x/db", r"is not a database URI"),
    ],
)
def test_what_can_never_work_is_refused_up_front(uri, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        resolve_address(uri, tmp_path)
    assert str(caught.value).startswith("tracking.uri: ")
    assert "\n" not in str(caught.value)


SECRETS = [
    "http://ann:s3cr3t-pw@host:5000/path",
    "http://s3cr3t-pw@host:5000",
    "postgresql://ann:s3cr3t-pw@host/db",
    "https://host/x?user=ann&access_token=s3cr3t-pw&y=1",
    "postgresql://host/db?password=s3cr3t-pw",
    "failed: url: /api?X-Amz-Signature=s3cr3t-pw (Caused by ...)",
    "http://ann:p@s3cr3t-pw@host",
]


@pytest.mark.parametrize("text", SECRETS)
def test_credentials_are_taken_out_and_the_rest_stays(text):
    shown = redact(text)
    assert "s3cr3t-pw" not in shown
    assert "***" in shown
    assert ("host" in shown) == ("host" in text)
    assert redact(shown) == shown


def test_text_without_credentials_is_left_alone():
    for text in ("http://host:5000/a?b=c", "mail ann@host", "s=0.3 @ 1/16", "sqlite:////a/b.db"):
        assert redact(text) == text


def test_the_password_in_the_environment_is_taken_out(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    assert redact("denied for hunter22; abc stays, it is too short") == (
        "denied for ***; abc stays, it is too short"
    )


@pytest.mark.parametrize(
    "uri",
    ["htpp://ann:s3cr3t-pw@host", "http://ann:s3cr3t-pw@host:port", "mysql://ann:s3cr3t-pw@h/d"],
)
def test_no_error_shows_a_password(uri, tmp_path):
    with pytest.raises(UserError) as caught:
        resolve_address(uri, tmp_path)
    assert "s3cr3t" not in str(caught.value)
