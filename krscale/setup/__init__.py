"""From an experiment to what runs: networks, sizes, teacher and store, each resolved once."""
