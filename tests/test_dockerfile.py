"""The Dockerfile, as far as that is possible without Docker.

The files it copies exist, its packages are pinned, and its pip steps work in a fresh environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from drilling import Drill
from running import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def instructions() -> list[tuple[str, str]]:
    """Every instruction and its argument, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    return [(name, argument) for name, argument in lines]


def copied() -> list[tuple[str, str]]:
    """Every (source, target) of COPY."""
    found = []
    for name, argument in instructions():
        if name == "COPY":
            *sources, target = argument.split()
            found += [(source, target) for source in sources]
    return found


def pip_steps() -> list[str]:
    return [argument for name, argument in instructions() if name == "RUN" and "pip " in argument]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), flags=re.M)
    sources = [source for source, _ in copied()]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert sorted(sources) == sorted(kept)


def test_what_the_build_needs_is_copied() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = PROJECT["project"]
    needed = [*wheel["packages"], *wheel["force-include"], project["readme"], "pyproject.toml"]
    needed += [*project["license-files"], "constraints.txt"]
    assert set(needed) == {source for source, _ in copied()}
    for source, target in copied():
        expected = f"./{source}" if (ROOT / source).is_dir() else "./"
        assert target == expected, "COPY of a folder copies what is in it"


def test_what_is_installed_is_pinned() -> None:
    steps = pip_steps()
    assert len(steps) == 3
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for step in steps:
        options = "--no-cache-dir (?:--no-build-isolation )?--constraint constraints.txt"
        words = re.fullmatch(rf"pip install {options} (\S+)", step)
        assert words is not None, step
        package = words[1].strip("'")
        if package.startswith("."):
            extras = package.removeprefix(".").strip("[]").split(",")
            assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
            assert "search" in extras
            assert "--no-build-isolation" in step
        else:
            assert re.search(rf"^{package}==", pins, flags=re.M), package
    (backend,) = PROJECT["build-system"]["requires"]
    assert any(step.endswith(re.split(r"[<>=]", backend)[0]) for step in steps)


def test_python_and_the_tag_are_those_of_the_project() -> None:
    base = dict(instructions())["FROM"]
    python = re.fullmatch(r"python:(3\.\d+)-slim", base)
    assert python is not None
    assert f"Programming Language :: Python :: {python[1]}" in PROJECT["project"]["classifiers"]
    job = yaml.safe_load((ROOT / "jobs/rayjob.yaml").read_text(encoding="utf-8"))
    (submitter,) = job["spec"]["submitterPodTemplate"]["spec"]["containers"]
    assert submitter["image"] == f"krscale:{PROJECT['project']['version']}"
    for shown in re.findall(
        r"krscale:(\d[\w.]*)", (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ):
        assert shown == PROJECT["project"]["version"]


def test_nothing_runs_as_root() -> None:
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("CMD")
    assert dict(instructions())["USER"] == "krscale"


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_the_pip_steps_in_a_fresh_environment(drill: Drill, tmp_path: Path) -> None:
    """They run in a folder with only the copied files; krscale is then used in another folder."""
    drill.must_hold("the Dockerfile's pip steps install krscale, which then plans a job")
    build, environment = tmp_path / "build", tmp_path / "environment"
    build.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env |= {"PATH": f"{environment / 'bin'}{os.pathsep}{env['PATH']}", "VIRTUAL_ENV": ""}
    for name, argument in instructions():
        if name == "COPY":
            *sources, target = argument.split()
            for source in sources:
                _copy(ROOT / source, build / target)
        elif argument in pip_steps():
            drill.injected("a pip step in an environment without any package", kind="load")
            subprocess.run(["sh", "-c", argument], cwd=build, env=env, check=True)
    shutil.rmtree(build)
    done = subprocess.run(
        ["krscale", "tune", "jobs/digits.toml", "--dry-run"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Planned work" in done.stdout
    drill.held("krscale tune jobs/digits.toml --dry-run works away from the sources")


def _copy(source: Path, target: Path) -> None:
    """Copy as COPY does: a file into a folder, or the contents of a folder into another."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
