"""Dual policy distillation and its baselines for continuous control."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dpd.policies.policyfile import Policy, load

__all__ = ["Policy", "__version__", "load"]


def __getattr__(name: str) -> object:
    # Import on first use: `dpd --help` must not wait for torch.
    if name in ("Policy", "load"):
        from dpd.policies import policyfile

        return getattr(policyfile, name)
    raise AttributeError(f"module 'dpd' has no attribute '{name}'")
