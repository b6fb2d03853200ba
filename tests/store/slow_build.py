"""Build a small store slowly, for tests that need several real processes.

Usage: slow_build.py FOLDER SECONDS_PER_REPORT [DONE_AT_WHICH_TO_HANG]
       slow_build.py FOLDER SECONDS_PER_REPORT twice
Waits for a line once it is ready. Prints one line per report, and at the end how often the teacher
was opened and how many images it got. With `twice`, two processes build after the imports of one;
each prints all its lines at its end, and a blank one.
"""

import os
import sys
import time
from pathlib import Path

from conftest import Small


def main() -> None:
    small = Small(Path(sys.argv[1]))
    twice = sys.argv[3:] == ["twice"]
    hang_at = int(sys.argv[3]) if len(sys.argv) > 3 and not twice else 10**9
    lines: list[str] = []

    def say(*words: object) -> None:
        lines.append(" ".join(map(str, words)))
        if not twice:
            print(lines[-1], flush=True)

    def report(done, total):
        say("report", done, total)
        if small.num_opened:
            time.sleep(1000.0 if done >= hang_at else float(sys.argv[2]))

    print("ready", flush=True)
    sys.stdin.readline()
    other = os.fork() if twice else 0
    small.prepare(report)
    say("opened", small.num_opened, "asked", small.num_asked)
    if twice:
        os.write(1, "".join(f"{line}\n" for line in [*lines, ""]).encode())  # in one piece
    if other and os.waitpid(other, 0)[1]:
        sys.exit(1)


main()
