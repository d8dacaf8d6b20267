"""Dual policy distillation and its baselines for continuous control."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dpd.hub.pull import pull_policy as pull
    from dpd.policies.hybrid_file import load_policy as load
    from dpd.policies.playing import play
    from dpd.policies.policyfile import Policy

__all__ = ["Policy", "__version__", "load", "play", "pull"]


def __getattr__(name: str) -> object:
    # Import on first use: `dpd --help` must not wait for torch.
    if name == "Policy":
        from dpd.policies.policyfile import Policy

        return Policy
    if name == "load":
        from dpd.policies.hybrid_file import load_policy

        return load_policy
    if name == "play":
        from dpd.policies.playing import play

        return play
    if name == "pull":
        from dpd.hub.pull import pull_policy

        return pull_policy
    raise AttributeError(f"module 'dpd' has no attribute '{name}'")
