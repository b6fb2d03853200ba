"""The wheel holds all that an installed krscale needs beside its modules."""

import subprocess
import sys
import zipfile
from pathlib import Path

from running import ROOT


def test_templates_jobs_and_search_spaces_are_in_the_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("krscale-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        entry_points = next(name for name in held if name.endswith("entry_points.txt"))
        assert "krscale = krscale.cli.app:main" in archive.read(entry_points).decode()
    files = [
        *ROOT.glob("krscale/**/*.py"),
        *ROOT.glob("krscale/report/templates/*.j2"),
    ]
    wanted = {str(file.relative_to(ROOT)) for file in files}
    wanted.add("krscale/py.typed")  # so that type checkers read the annotations
    wanted |= {f"krscale/search_spaces/{file.name}" for file in ROOT.glob("search_spaces/*.toml")}
    wanted |= {f"krscale/jobs/{file.name}" for file in ROOT.glob("jobs/*")}
    assert len([name for name in wanted if name.endswith(".j2")]) >= 5
    assert wanted <= held
