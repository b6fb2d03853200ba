"""`python -m krscale.teacher`: the same as `krscale teacher`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["teacher", *sys.argv[1:]]))
