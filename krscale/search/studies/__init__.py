"""One Optuna study for each method and size: which trial comes next, which ends, which won."""
