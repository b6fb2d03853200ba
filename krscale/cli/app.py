"""The console script `krscale`: one name for all commands."""

from __future__ import annotations

import importlib
import sys

from krscale.errors import unknown_name

COMMANDS = {
    "tune": "distil a ladder of students and show accuracy versus capacity",
    "distill": "distil one student, on one worker or many",
    "teach": "prepare data, teacher and its knowledge",
    "report": "print, draw and explain the result of a run, or compare several",
    "insight": "say which settings mattered, and which won at which capacity",
    "pick": "choose a student of a finished run and export it (ONNX, safetensors, pt2)",
    "space": "check a search space, and list what it varies",
    "store": "check or describe what the teacher said, as it is kept for a run",
    "sync": "send MLflow what a run recorded while MLflow was away",
}


def main() -> int:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: krscale COMMAND [options]\n")
        for command, purpose in COMMANDS.items():
            print(f"  {command:<9}{purpose}")
        print("\nkrscale COMMAND --help says more.")
        return 0
    if name not in COMMANDS:
        print(f"krscale: error: {unknown_name('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"krscale.cli.{name}")
    sys.argv[0:2] = [f"krscale {name}"]
    return int(module.main())
