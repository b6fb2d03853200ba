"""Build a small store slowly, for tests that need several real processes.

Usage: slow_build.py FOLDER SECONDS_PER_REPORT [DONE_AT_WHICH_TO_HANG]
Waits for a line once it is ready. Prints one line per report, and at the end how often the teacher
was opened and how many images it got.
"""

import sys
import time
from pathlib import Path

from conftest import Small


def main() -> None:
    small = Small(Path(sys.argv[1]))
    hang_at = int(sys.argv[3]) if len(sys.argv) > 3 else 10**9

    def report(done, total):
        print("report", done, total, flush=True)
        if small.num_opened:
            time.sleep(1000.0 if done >= hang_at else float(sys.argv[2]))

    print("ready", flush=True)
    sys.stdin.readline()
    small.prepare(report)
    print("opened", small.num_opened, "asked", small.num_asked, flush=True)


main()
