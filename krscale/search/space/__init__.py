"""What a search varies: TOML files read into Optuna's distributions, and checked."""
