"""krscale: which student size is enough, trained how, and how accurate will it be?"""

import os

# Threads that wait for each other sleep instead of spinning: beside a busy neighbour two that spin
# are several times slower than one, and on free cores sleeping costs little (docs/log.md). OpenMP
# reads this when torch is loaded, so it stands before every other import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
