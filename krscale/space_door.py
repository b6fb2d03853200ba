"""`python -m krscale.space_door`: `krscale space` under an older name, for existing scripts."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["space", *sys.argv[1:]]))
