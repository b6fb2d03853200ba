"""The files that Ray and Kubernetes read are what those programs accept."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from documents import CURRENT
from ray.autoscaler._private.util import prepare_config, validate_config
from rayjob_schema import RAYJOB

from krscale.config import Experiment, load, read_toml
from krscale.redaction import may_name_a_secret

ROOT = Path(__file__).resolve().parents[2]
WORKER_PORTS = range(10002, 20000)


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


ON_AWS, ON_PREMISE = "ray_cluster.yaml", "jobs/ray_cluster_on_premise.yaml"


@pytest.fixture(params=[ON_AWS, ON_PREMISE])
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = read(request.param)
    return content


def starts(cluster: dict[str, Any]) -> list[str]:
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_ray_finds_the_machines_that_the_files_name() -> None:
    on_aws = prepare_config(read(ON_AWS))["available_node_types"]
    assert on_aws["cpu_worker"]["max_workers"] == 8
    assert on_aws["gpu_worker"]["node_config"]["BlockDeviceMappings"]
    own = read(ON_PREMISE)
    (machines,) = prepare_config(copy.deepcopy(own))["available_node_types"].values()
    assert machines["max_workers"] == machines["min_workers"] == len(own["provider"]["worker_ips"])


def test_without_nfs_what_is_left_of_the_cluster_file_is_whole() -> None:
    """Its first comment says that lines marked NFS can be removed if the storage is a bucket."""
    text = (ROOT / ON_AWS).read_text(encoding="utf-8")
    left = "\n".join(line for line in text.splitlines() if not line.endswith("# NFS"))
    assert len(left.splitlines()) == len(text.splitlines()) - 5
    assert "nfs-kernel-server" not in left
    validate_config(prepare_config(yaml.safe_load(left)))


def test_the_whole_package_is_copied_to_the_machines(cluster: dict[str, Any]) -> None:
    """rsync leaves out every folder of a name without a slash before it, as `krscale/runs`."""
    anywhere = {name for name in cluster["rsync_exclude"] if not name.startswith("/")}
    folders = [path for top in ("krscale", "search_spaces") for path in (ROOT / top).rglob("*")]
    names = {part for path in folders for part in path.relative_to(ROOT).parts} - {"__pycache__"}
    assert len(names) > 100
    assert names & anywhere == set()
    assert {"/runs/", "/mlruns/"} <= set(cluster["rsync_exclude"])


def test_ray_refuses_a_misspelt_key(cluster: dict[str, Any]) -> None:
    cluster["idle_timeout_minute"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config(cluster))


def test_workers_join_the_port_of_the_head_outside_the_worker_ports(
    cluster: dict[str, Any],
) -> None:
    head, worker = starts(cluster)
    port = re.search(r" --port=(\d+)", head)
    joined = re.search(r"\$RAY_HEAD_IP:(\d+)", worker)
    assert port is not None
    assert joined is not None
    assert port[1] == joined[1]
    fixed = [int(number) for start in (head, worker) for number in re.findall(r"port=(\d+)", start)]
    assert len(fixed) >= 4
    assert not set(fixed) & set(WORKER_PORTS)


def test_every_node_wants_the_token_and_the_dashboard_is_local(cluster: dict[str, Any]) -> None:
    assert all("RAY_AUTH_MODE=token" in start for start in starts(cluster))
    assert "--dashboard-host=127.0.0.1" in starts(cluster)[0]
    assert any(path.endswith(".ray/auth_token") for path in cluster["file_mounts"])


def shown_commands(part: str) -> dict[str, str]:
    """Every line of pages, comments and files that shows a command, with its place."""
    files = [*CURRENT, ROOT / "ray_cluster.yaml", *(ROOT / "jobs").glob("*.yaml")]
    lines = (
        (f"{file.relative_to(ROOT)}: {line}", line)
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.match(rf"^(?:\$|#  ) .*{part}", line)
    )
    return dict(lines)


def test_no_head_is_shown_that_anyone_may_join() -> None:
    shown = shown_commands("ray start --head")
    assert len(shown) >= 2
    assert [where for where, line in shown.items() if "RAY_AUTH_MODE=token ray" not in line] == []


def test_a_token_is_shown_to_be_made_for_its_owner_only() -> None:
    """Ray makes the file readable for all, and a file that it wrote earlier stays so."""
    shown = shown_commands("get-auth-token --generate")
    assert len(shown) >= 3
    assert [where for where, line in shown.items() if "(umask 077; ray get" not in line] == []
    for where in shown:
        text = (ROOT / where.partition(":")[0]).read_text(encoding="utf-8")
        assert "chmod 600 ~/.ray/auth_token" in text, where


def test_no_file_shows_a_secret_in_a_runtime_environment() -> None:
    """Ray writes runtime environments into logs that all can read."""
    for path in ("jobs/runtime_env.yaml", "jobs/rayjob.yaml"):
        text = (ROOT / path).read_text(encoding="utf-8")
        names = re.findall(r"^ +([A-Z][A-Z_]+): ", text, flags=re.M)
        assert names
        assert list(filter(may_name_a_secret, names)) == []


def test_job_excludes_what_must_not_be_uploaded() -> None:
    environment = read("jobs/runtime_env.yaml")
    assert {".git", ".venv", "/runs/"} <= set(environment["excludes"])
    assert set(environment["env_vars"]) == {"KRSCALE_STORAGE_PATH", "RAY_JOB_STOP_WAIT_TIME_S"}


def test_digits_toml_spells_out_the_defaults() -> None:
    assert load(ROOT / "jobs/digits.toml").fingerprint() == Experiment().fingerprint()
    defaults = Experiment().model_dump(mode="json")
    for section, content in read_toml(ROOT / "jobs/digits.toml").items():
        values = content.items() if isinstance(content, dict) else [(None, content)]
        for key, value in values:
            default = defaults[section] if key is None else defaults[section][key]
            assert value == default, f"{section}.{key}"


def test_kuberay_accepts_the_job() -> None:
    jsonschema.validate(read("jobs/rayjob.yaml"), RAYJOB)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("spec", "entryPoint", "python"),
        ("spec", "backoffLimit", "0"),
        ("spec", "submissionMode", "K8sJob"),
        ("spec.rayClusterSpec.authOptions", "mode", "Token"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams", "num-cpus", 0),
        ("spec.rayClusterSpec.workerGroupSpecs.0", "replicas", 2.5),
        ("spec.rayClusterSpec.workerGroupSpecs.0", "groupname", "trials"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0", "volumeMount", []),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resources.limits",
         "memory", "8 GB"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.ports.0",
         "name", "the-server-of-gcs"),
    ],
)  # fmt: skip
def test_kuberay_refuses_what_is_misspelt_or_of_another_type(
    where: str, name: str, value: object
) -> None:
    job = read("jobs/rayjob.yaml")
    place = job
    for step in where.split("."):
        place = place[int(step)] if step.isdigit() else place[step]
    place[name] = value
    with pytest.raises(jsonschema.ValidationError) as refused:
        jsonschema.validate(job, RAYJOB)
    assert name in str(refused.value)


@pytest.mark.parametrize("where", ["headGroupSpec", "workerGroupSpecs.0"])
def test_kuberay_wants_what_it_requires(where: str) -> None:
    job = read("jobs/rayjob.yaml")
    place = job["spec"]["rayClusterSpec"]
    for step in where.split("."):
        place = place[int(step)] if step.isdigit() else place[step]
    del place["template"]
    with pytest.raises(jsonschema.ValidationError, match="'template' is a required property"):
        jsonschema.validate(job, RAYJOB)


def test_rayjob_is_whole() -> None:
    job = read("jobs/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert (ROOT / spec["entrypoint"].split()[-1]).is_file()  # jobs are part of the package
    storage = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["KRSCALE_STORAGE_PATH"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        assert mount["mountPath"] == storage
        assert mount["name"] in {volume["name"] for volume in pod["volumes"]}
        assert container["image"] == spec["submitterPodTemplate"]["spec"]["containers"][0]["image"]
        # The claim is writable for the user of the image.
        user = re.search(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text("utf-8"))
        assert user is not None
        assert pod["securityContext"] == {"fsGroup": int(user[1])}


def test_cluster_files_name_the_pinned_ray() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    version = re.search(r"^ray==(.+)$", pins, re.MULTILINE)
    assert version is not None
    assert read("jobs/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == version[1]
