"""Write the tree of docs/architecture.md from the first lines of the modules' docstrings.

python scripts/draw_modules.py            # writes
python scripts/draw_modules.py --check    # exit code 1 if the document differs
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- modules: written by scripts/draw_modules.py -->", "<!-- end of modules -->"
COLUMN = 30

FLOORS = (
    (
        "Ground: torch and the standard library",
        (
            "choices",
            "errors",
            "lazy",
            "redaction",
            "showing",
            "interruption",
            "stalls",
            "exchange",
            "foreign",
            "storage_errors",
            "extras",
            "links",
            "leftovers",
            "locking",
            "files",
            "pickle_rules",
            "plain_pickle",
            "storage",
            "allocator",
            "digests",
            "metrics",
            "pareto",
            "knowledge",
            "models",
        ),
    ),
    (
        "Settings and methods: the ground, and pydantic within config",
        ("config", "methods", "losses", "kr"),
    ),
    (
        "First floor: learning in one process, without Ray, Optuna or MLflow",
        (
            *("parallel", "batch_norm", "own_norms", "data", "store", "training", "setup"),
            *("export", "given_loaders", "on_objects"),
        ),
    ),
    ("Second floor: many workers", ("cluster",)),
    ("Third floor: runs", ("time_left", "progress", "report", "tracking", "runs", "search")),
    ("Commands", ("cli",)),
)


def tree() -> str:
    """Return the floors from the top down, each module with the first line of its docstring."""
    lines = ["```", "krscale/"]
    folders = sorted((ROOT / "krscale").glob("*/__main__.py"))
    drawn = {"__init__"}
    for title, names in reversed(FLOORS):
        lines += ["", f"{'':<{COLUMN}}{title.upper()}"]
        for name in reversed(names):
            lines += _entry(ROOT / "krscale" / name, indent=1)
            drawn.add(name)
    commands = [p for p in sorted((ROOT / "krscale").glob("*.py")) if p.stem not in drawn]
    for path in commands:
        if not _first_line(path).startswith("`python -m"):
            raise SystemExit(f"{path}: neither a command nor on a floor; add it to FLOORS.")
    lines += ["", f"{'':<{COLUMN}}PYTHON -M KRSCALE.NAME: each calls the command in cli/"]
    lines += [f"  {', '.join(p.name for p in commands)},"]
    lines += [f"  {', '.join(f'{p.parent.name}/{p.name}' for p in folders)}", "```"]
    return "\n".join(lines)


def _entry(path: Path, indent: int) -> list[str]:
    if path.is_dir():
        own = _first_line(path / "__init__.py")
        below = sorted(p for p in path.iterdir() if p.is_dir() and (p / "__init__.py").exists())
        modules = sorted(p for p in path.glob("*.py") if not p.stem.startswith("__"))
        lines = [_line(f"{path.name}/", own, indent)]
        for inner in (*modules, *below):
            lines += _entry(inner.with_suffix("") if inner.is_file() else inner, indent + 1)
        return lines
    return [_line(f"{path.name}.py", _first_line(path.with_suffix(".py")), indent)]


def _line(name: str, text: str, indent: int) -> str:
    return f"{'  ' * indent + name:<{COLUMN}}{text}".rstrip()


def _first_line(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def main() -> int:
    """Write the document, or compare with it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n{tree()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print(f"{DOCUMENT}: differs; run python scripts/draw_modules.py", file=sys.stderr)
        return int(text != wanted)
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
