"""Search spaces: TOML files that are read into Optuna's distributions, and checked."""
