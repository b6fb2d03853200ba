"""Optional packages, and the extra of krscale that installs each.

The core (`krscale.KRLoss`, `krscale.losses`) needs torch, numpy, pyarrow and pydantic. A command or
a function that needs more fails when it imports it; `missing_extra` tells the user what to install.
"""

from __future__ import annotations

from krscale.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "search": (
        "ray", "optuna", "mlflow", "rich", "PIL", "matplotlib", "plotly", "jinja2", "markupsafe",
        "sqlalchemy", "scipy", "sklearn", "filelock", "safetensors",
    ),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "vision": ("timm", "torchvision"),
    "hf": ("transformers",),
    "samplers": ("cmaes",),
    "system": ("psutil", "pynvml"),
}  # fmt: skip
"""Extra -> the packages that it installs, by the name they are imported by."""


def missing_extra(error: BaseException) -> UserError | None:
    """Return the error for the user if a package is missing; None for any other error."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return UserError(
                f"this needs the package {package!r}, which is not installed; "
                f"pip install 'krscale[{extra}]' brings it."
            )
    return None
