"""`python -m krscale.store_door`: `krscale store` by an older name that scripts use."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["store", *sys.argv[1:]]))
