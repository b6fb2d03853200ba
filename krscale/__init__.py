"""krscale: which student size is enough, trained how, and how accurate will it be?

With Python objects: `krscale.search` finds accuracy versus capacity, `krscale.distill` trains one
student; `krscale.KRLoss` and `krscale.losses` are for your own training loop. They are imported
when they are first used, so that `import krscale` is fast.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krscale import losses
    from krscale.kr import KRLoss
    from krscale.on_objects import distill
    from krscale.search.calling import search

__all__ = ["KRLoss", "distill", "losses", "search"]


def __getattr__(name: str) -> object:
    # Not `from krscale import losses`, which would call this function again.
    import importlib

    if name in ("losses", "search"):
        return importlib.import_module(f"krscale.{name}")
    if name == "KRLoss":
        return importlib.import_module("krscale.kr").KRLoss
    if name == "distill":
        from krscale.extras import missing_extra

        try:
            return importlib.import_module("krscale.on_objects").distill
        except ModuleNotFoundError as error:
            raise missing_extra(error) or error from None
    raise AttributeError(f"module 'krscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
