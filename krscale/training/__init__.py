"""Training in one process: the only training loop, its metrics, and its checkpoints."""
