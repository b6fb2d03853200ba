# $KRSCALE: where krscale is cloned from.
git clone "$KRSCALE" krscale-source
pip install --constraint krscale-source/constraints.txt './krscale-source[search]'
