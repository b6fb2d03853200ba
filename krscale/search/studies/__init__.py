"""One Optuna study per method and size: which trial comes next, which ends, which won."""
