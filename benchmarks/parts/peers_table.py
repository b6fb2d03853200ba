"""The table of `benchmarks/results/own_folder.json`, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parts.peer_list import PEERS_BY_NAME

_HEAD = (
    "1,197 images of 32 x 32 pixels in 10 class folders, and 300 each for validation and test; a "
    "teacher that was trained on 40 x 40 pixels in -1..1; one student, 10 epochs, batches of 64, "
    "KD, one thread for every training. "
    "The recipes are in `benchmarks/peers/`, lines counted without blanks and comments. Classes "
    "and weights of teacher and student are there before, and count for nobody. *Installing* is "
    "into a new virtual environment, with what the network gave, which varied by a factor of two "
    "between two moments. *Running* includes all starting. One run each, beside other work on the "
    "machine, so a third more or less says little."
)


_ALIKE = 3.0
_LOADS_DIFFER = (
    "Seconds are not compared: the machine had more else to do in one of the two than in the other "
    "(loads below)."
)


def peers_table(result: Mapping[str, Any]) -> str:
    """Return the peers side by side, what each lacks, and the lines for KR in a loop."""
    measured = result["peers"]
    lines = [
        f"On {result['machine']}, all of it on the CPU.",
        "",
        _HEAD,
        "",
        "| peer | what it runs | commands (words) | lines of configuration | lines of code "
        "| installing, s | running, s | test accuracy |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(name, measured.get(name, {})) for name in PEERS_BY_NAME),
        "",
        *_against(measured, "krscale_distill", "torchdistill"),
        *_against(measured, "krscale_tune", "ray_tune"),
        *(f"- {_note(name, measured.get(name, {}))}" for name in PEERS_BY_NAME),
    ]
    if "own_loop" in measured:
        lines += ["", _loop(measured["own_loop"])]
    return "\n".join(lines)


def _row(name: str, found: Mapping[str, Any]) -> str:
    peer = PEERS_BY_NAME[name]
    count = peer.count()
    accuracy = f"{100 * found['test_accuracy']:.1f} %" if "test_accuracy" in found else ""
    seconds = found.get("seconds", "not run here")
    return (
        f"| {peer.title} | {peer.does} | {count['commands']} ({count['words']}) "
        f"| {count['config_lines']} | {count['code_lines']} "
        f"| {found.get('install_seconds', '')} | {seconds} | {accuracy} |"
    )


def _against(measured: Mapping[str, Any], mine: str, theirs: str) -> list[str]:
    """Return a line on where krscale needs more and where less, in what was measured of both."""
    own, other = measured.get(mine, {}), measured.get(theirs, {})
    counts = [
        {**found, **PEERS_BY_NAME[name].count()} for name, found in ((mine, own), (theirs, other))
    ]
    for count in counts:
        count["lines"] = count["config_lines"] + count["code_lines"]
    named = {
        "lines": "lines",
        "commands": "commands",
        "install_seconds": "seconds of installing",
        "seconds": "seconds of running",
    }
    alike = _alike_loads(own, other)
    if not alike:
        named = {key: words for key, words in named.items() if not key.endswith("seconds")}
    ways: dict[str, list[str]] = {"more": [], "fewer": []}
    for key, words in named.items():
        if all(key in count for count in counts) and counts[0][key] != counts[1][key]:
            way = "more" if counts[0][key] > counts[1][key] else "fewer"
            ways[way].append(f"{words} ({counts[0][key]} against {counts[1][key]})")
    said = [f"{way} {' and '.join(found)}" for way, found in ways.items() if found]
    title = PEERS_BY_NAME[theirs].title
    line = f"- {PEERS_BY_NAME[mine].title} against {title}: {'; '.join(said)}."
    return [line if alike else f"{line} {_LOADS_DIFFER}"]


def _alike_loads(*measured: Mapping[str, Any]) -> bool:
    """Whether seconds were measured under similar loads of the machine."""
    loads = [load for found in measured for load in found.get("load_before_and_after", ())]
    return not loads or max(loads) - min(loads) <= _ALIKE


def _note(name: str, found: Mapping[str, Any]) -> str:
    peer = PEERS_BY_NAME[name]
    notes = [f"{peer.title}: {peer.lacks}."]
    if "not_run" in found:
        notes.append(
            "Not run here, as its repository could not be cloned; its networks and one step of "
            f"its task were tried by `benchmarks/parts/{peer.stand_in}` ({found['tried']})."
        )
    elif "stand_in" in found:
        notes.append(
            "As its repository could not be cloned, what was run is "
            f"`benchmarks/parts/{peer.stand_in}`, which makes the same calls of the package."
        )
    if found:
        before, after = found["load_before_and_after"]
        notes.append(
            f"`{found['command']}` at `{found['commit'][:12]}`, load {before} and {after}."
        )
    return " ".join(notes)


def _loop(found: Mapping[str, Any]) -> str:
    before, after = found["load_before_and_after"]
    return (
        "KR in a loop that is there already "
        f"(`benchmarks/peers/own_loop`, {found['lines']} lines): "
        f"{found['added_for_kr']} lines are changed or added for KR itself, "
        f"{found['added'] - found['added_for_kr']} more for a teacher that takes other images. "
        f"Test accuracy {100 * found['plain_accuracy']:.1f} % without and "
        f"{100 * found['kr_accuracy']:.1f} % with it, one seed; {found['plain_seconds']} and "
        f"{found['kr_seconds']} s, of which KR needs some to fit its probes and the rest for the "
        f"teacher in every step; load {before} and {after}. None of the peers has KR."
    )
