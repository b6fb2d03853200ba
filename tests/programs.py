"""Compiled programs of networks; torch deprecates the TorchScript ones, but users have them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


def traced(network: nn.Module, images: Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        program: torch.jit.ScriptModule = torch.jit.trace(network.eval(), images)
    return program


def scripted(network: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        program: torch.jit.ScriptModule = torch.jit.script(network)
    return program


def exported(network: nn.Module, images: Tensor) -> nn.Module:
    return torch.export.export(network.eval(), (images,)).module()
