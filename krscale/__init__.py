"""krscale: which student size is enough, trained how, and how accurate will it be?

For a training loop of one's own: `krscale.KRLoss`, and the losses of `krscale.losses`. Both are
imported when they are first used, so that `import krscale` costs nothing.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krscale import losses
    from krscale.kr import KRLoss

__all__ = ["KRLoss", "losses"]


def __getattr__(name: str) -> object:
    # Not `from krscale import losses`, which would ask this function again.
    import importlib

    if name == "losses":
        return importlib.import_module("krscale.losses")
    if name == "KRLoss":
        return importlib.import_module("krscale.kr").KRLoss
    raise AttributeError(f"module 'krscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
