"""The parts of `benchmarks/claims.py`: families, searches, measures, page and figures."""
