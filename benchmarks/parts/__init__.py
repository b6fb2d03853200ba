"""Parts of the programs in `benchmarks/`."""
