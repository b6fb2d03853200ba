"""The lock pins everything, by version only, and the tests run with exactly these versions."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!]+)")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIREMENTS = [
    *PROJECT["project"]["dependencies"],
    *PROJECT["project"]["optional-dependencies"]["search"],
    *PROJECT["project"]["optional-dependencies"]["export"],
    *PROJECT["project"]["optional-dependencies"]["system"],
    *(
        text
        for text in PROJECT["project"]["optional-dependencies"]["dev"]
        if Requirement(text).name != PROJECT["project"]["name"]  # its own extras, listed above
    ),
    *PROJECT["build-system"]["requires"],
]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Version of each name; a line with a URL, a local build or anything else is an error."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match is not None, f"not a plain pin: {line}"
            found[canonicalize_name(match["name"])] = match["version"]
    return found


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_every_requirement_is_pinned_within_its_range(text: str, pins: dict[str, str]) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_the_lock_is_what_is_installed(pins: dict[str, str]) -> None:
    differing = {}
    for name, pinned in pins.items():
        try:
            installed = Version(version(name)).public
        except PackageNotFoundError:
            continue  # needed on another platform or by a build only
        if installed != pinned:
            differing[name] = (pinned, installed)
    assert not differing, "run 'make setup-dev', or 'make constraints' to keep these"


def test_nothing_that_is_needed_is_missing_from_the_lock(pins: dict[str, str]) -> None:
    """Every installed package that krscale needs, directly or not, has a pin."""
    installed = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    needed, waiting = set(), [Requirement(text) for text in REQUIREMENTS]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in needed or name not in installed:
            continue
        needed.add(name)
        for text in installed[name].requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(child)
    assert len(needed) > 100
    assert needed <= set(pins)
