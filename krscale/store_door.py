"""`python -m krscale.store_door`: `krscale store` under an older name, for existing scripts."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["store", *sys.argv[1:]]))
