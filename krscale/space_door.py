"""`python -m krscale.space_door`: `krscale space` by an older name that scripts use."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["space", *sys.argv[1:]]))
