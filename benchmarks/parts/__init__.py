"""What `benchmarks/step.py` measures, one part a file."""
