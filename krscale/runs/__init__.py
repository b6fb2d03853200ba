"""Runs: run folders, training one student, and refitting, exporting or registering a winner."""
