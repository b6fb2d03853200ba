"""Build a small store slowly, for tests that need several real processes.

Usage: slow_build.py FOLDER SECONDS_PER_REPORT
Prints one line per report, and at the end how often the teacher was opened.
"""

import sys
import time
from pathlib import Path

from conftest import Small


def main() -> None:
    small = Small(Path(sys.argv[1]))

    def report(done, total):
        print("report", done, total, flush=True)
        if small.num_opened:
            time.sleep(float(sys.argv[2]))

    small.dataset  # noqa: B018 - written now: both processes write the same bytes
    print("ready", flush=True)
    small.prepare(report)
    print("opened", small.num_opened, "asked", small.num_asked, flush=True)


main()
