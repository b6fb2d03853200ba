"""Runs: the run folder, one distilled student, a student trained again, exported or registered."""
