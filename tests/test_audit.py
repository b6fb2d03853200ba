"""The audit of the pins: known and accepted advisories; a pin that is not compared fails."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from running import ROOT

SBOM_TOOL = ROOT / ".venv" / "audit" / "bin" / "cyclonedx-py"
LOCK = "# pins\nFlask==3.1.3\nast_serialize==0.13.1\nray==2.60.0\n"
PINS = {"flask", "ast-serialize", "ray"}
KNOWN = {"id": "PYSEC-1", "aliases": ["CVE-1", "GHSA-1"], "fix_versions": [], "description": "x"}


def answer(*vulnerabilities: dict[str, object], skipped: tuple[str, ...] = ()) -> str:
    """Output of pip-audit: packages compared, and packages that its database does not have."""
    packages: list[dict[str, object]] = [
        {"name": name, "version": "1", "vulns": list(vulnerabilities) if name == "ray" else []}
        for name in ("Flask", "ast-serialize", "ray")
        if name not in skipped
    ]
    packages += [{"name": name, "skip_reason": "Dependency not found"} for name in skipped]
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LOCK", tmp_path / "constraints.txt")
    monkeypatch.setattr(module, "ACCEPTED", tmp_path / "advisories.toml")
    module.LOCK.write_text(LOCK)
    module.ACCEPTED.write_text("")
    return module


def outcome(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    *answers: tuple[str, str],
    accepted: str = "",
) -> tuple[int, list[str]]:
    """The exit code with these answers of the databases, and the databases that were asked."""
    asked: list[str] = []

    def ask(service: str) -> tuple[str, str]:
        asked.append(service)
        return answers[len(asked) - 1]

    audit.ACCEPTED.write_text(accepted)
    monkeypatch.setattr(audit, "ask", ask)
    return audit.main(), asked


def test_all_compared_and_nothing_known(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit.read_pins(LOCK) == PINS
    assert outcome(audit, monkeypatch, (answer(), "")) == (0, ["pypi"])


@pytest.mark.parametrize("skipped", [("ray",), ("Flask", "ast-serialize", "ray")])
def test_a_pin_that_no_database_has_is_no_pass(
    skipped: tuple[str, ...],
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """pip-audit itself exits with 0 there, and prints that no vulnerabilities are known."""
    answers = ((answer(skipped=skipped), ""), ("", "Name or service not known"))
    assert outcome(audit, monkeypatch, *answers) == (2, ["pypi", "osv"])
    said = capsys.readouterr().out
    assert f"{len(skipped)} of 3 pins were NOT compared" in said
    assert "This is no pass" in said
    assert "osv: 0 of 3 pins compared: Name or service not known" in said


def test_the_second_database_is_asked_for_what_the_first_lacks(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ((answer(skipped=("Flask",)), ""), (answer(), ""))
    assert outcome(audit, monkeypatch, *answers) == (0, ["pypi", "osv"])


def test_no_database_at_all(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(audit, monkeypatch, ("", "no network"), ("", "no network"))[0] == 2


@pytest.mark.parametrize("named", ["PYSEC-1", "CVE-1", "GHSA-1"])
def test_what_is_known_fails_unless_it_is_accepted_with_a_reason(
    named: str,
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = (answer(KNOWN), "")
    assert outcome(audit, monkeypatch, known)[0] == 1
    assert "ray 1: PYSEC-1, CVE-1, GHSA-1 (no fix): NOT ACCEPTED" in capsys.readouterr().out
    entry = f'[[accepted]]\nids = ["{named}"]\npackage = "ray"\nreason = "loopback"\n'
    assert outcome(audit, monkeypatch, known, accepted=entry)[0] == 0
    assert "accepted: loopback" in capsys.readouterr().out
    with pytest.raises(ValueError, match="reason"):
        outcome(audit, monkeypatch, known, accepted=entry.replace("loopback", " "))


def test_what_this_project_accepts_is_pinned_and_has_a_reason(audit: ModuleType) -> None:
    text = (ROOT / "scripts" / "advisories.toml").read_text(encoding="utf-8")
    assert all(len(reason) > 100 for reason in audit.read_accepted(text).values())
    pins = audit.read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    packages = {entry["package"] for entry in audit.tomllib.loads(text)["accepted"]}
    assert packages <= pins


@pytest.mark.drill  # it takes seconds
@pytest.mark.skipif(not SBOM_TOOL.exists(), reason="make sbom installs cyclonedx-py")
def test_the_bill_of_materials_holds_every_pin_and_nothing_else(audit: ModuleType) -> None:
    """`make sbom` checks it against its schema with `--validate`."""
    subprocess.run([ROOT / "scripts" / "audit.sh", "sbom"], check=True, capture_output=True)
    bill = json.loads((ROOT / "build" / "sbom.json").read_text(encoding="utf-8"))
    pins = audit.read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    assert {audit._canonical(each["name"]) for each in bill["components"]} == pins
    assert all(each["purl"].startswith("pkg:pypi/") for each in bill["components"])
    assert bill["metadata"]["component"]["name"] == "krscale"
