"""Compare every pin of constraints.txt with the known advisories, and print the result.

    scripts/audit.sh audit

Exit code 0: every pin was compared, and each of its advisories is accepted in `advisories.toml`
with a reason. 1: an advisory is not accepted. 2: not every pin was compared, because no database
could be reached or it does not have the package; then nothing is reported to be safe.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "constraints.txt"
ACCEPTED = ROOT / "scripts" / "advisories.toml"
SERVICES = ("pypi", "osv")
"""Databases that pip-audit can query, in the order in which they are tried."""


@dataclass(frozen=True)
class Advisory:
    """One advisory for one pin.

    Attributes:
        pin: `NAME VERSION`.
        names: Its id and its other ids, `CVE-...`, `GHSA-...`, `PYSEC-...`.
        fixed_in: Versions in which it is fixed; empty if there is none.
    """

    pin: str
    names: tuple[str, ...]
    fixed_in: tuple[str, ...] = ()


def main() -> int:
    """Query the databases in turn, print the results, and return the exit code."""
    pins = read_pins(LOCK.read_text(encoding="utf-8"))
    accepted = read_accepted(ACCEPTED.read_text(encoding="utf-8"))
    compared: set[str] = set()
    found: list[Advisory] = []
    for service in SERVICES:
        answer, error = ask(service)
        names, advisories = read_answer(answer)
        print(f"audit: {service}: {len(names)} of {len(pins)} pins compared{error and ': '}{error}")
        found += [each for each in advisories if each.pin.split()[0] not in compared]
        compared |= names
        if compared >= pins:
            break
    text, code = verdict(pins, compared, found, accepted)
    print(text)
    return code


def ask(service: str) -> tuple[str, str]:
    """Return the JSON that pip-audit prints, and its last line of errors if it prints none."""
    command = ["-r", str(LOCK), "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--vulnerability-service", service]
    done = subprocess.run(  # noqa: S603 - of fixed words
        [sys.executable, "-m", "pip_audit", *command], capture_output=True, text=True, check=False
    )
    if done.stdout:
        return done.stdout, ""
    said = done.stderr.strip().splitlines()
    return "", said[-1][:200] if said else f"exit code {done.returncode}"


def read_pins(lock: str) -> set[str]:
    """Return the names that a lock pins, as pip-audit writes them."""
    lines = (line.partition("==")[0] for line in lock.splitlines() if "==" in line)
    return {_canonical(name) for name in lines}


def read_accepted(text: str) -> dict[str, str]:
    """Return the reason for every id in `advisories.toml`.

    Raises:
        ValueError: If an entry lacks its ids, package or reason.
    """
    reasons = {}
    for entry in tomllib.loads(text).get("accepted", []):
        if not (entry.get("ids") and entry.get("package") and str(entry.get("reason", "")).strip()):
            raise ValueError(f"{ACCEPTED.name}: needs ids, package and reason: {entry}")
        reasons.update(dict.fromkeys(entry["ids"], entry["reason"]))
    return reasons


def read_answer(answer: str) -> tuple[set[str], list[Advisory]]:
    """Return the names that were compared, and the advisories for them.

    Packages that pip-audit skips, as its database does not have them, were not compared. pip-audit
    itself ends with "No known vulnerabilities found" and exit code 0 in this case.
    """
    packages: Sequence[Mapping[str, Any]] = (json.loads(answer) if answer else {}).get(
        "dependencies", []
    )
    compared = [each for each in packages if "skip_reason" not in each and "vulns" in each]
    advisories = [
        Advisory(
            f"{_canonical(each['name'])} {each['version']}",
            (known["id"], *known.get("aliases", [])),
            tuple(known.get("fix_versions", [])),
        )
        for each in compared
        for known in each["vulns"]
    ]
    return {_canonical(each["name"]) for each in compared}, advisories


def verdict(
    pins: set[str], compared: set[str], found: Sequence[Advisory], accepted: Mapping[str, str]
) -> tuple[str, int]:
    """Return what to print at the end, and the exit code (see above)."""
    lines, open_ones = [], 0
    for each in found:
        reason = next((accepted[name] for name in each.names if name in accepted), "")
        open_ones += not reason
        fix = f"fixed in {', '.join(each.fixed_in)}" if each.fixed_in else "no fix"
        state = f"accepted: {' '.join(reason.split())}" if reason else "NOT ACCEPTED"
        lines.append(f"audit: {each.pin}: {', '.join(each.names)} ({fix}): {state}")
    missing = sorted(pins - compared)
    if open_ones:
        lines.append(f"audit: {open_ones} advisories are neither fixed nor accepted")
    if missing:
        lines.append(
            f"audit: {len(missing)} of {len(pins)} pins were NOT compared with any advisory "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}): no database was "
            f"reached, or it does not have them. This is no pass."
        )
    if not open_ones and not missing:
        lines.append(f"audit: all {len(pins)} pins compared, {len(found)} advisories, all accepted")
    return "\n".join(lines), 1 if open_ones else 2 if missing else 0


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    sys.exit(main())
