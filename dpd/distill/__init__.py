"""Distillation methods: a table of settings, each of which builds its method."""

from __future__ import annotations

from dpd.distill.config import (
    CloningConfig,
    DAggerConfig,
    DPDConfig,
    GradientConfig,
    IndependentConfig,
    KickstartConfig,
    OnPolicyConfig,
    ProgressiveConfig,
    ProximalConfig,
    RetrievalConfig,
    ReverseGradientConfig,
    ScaffoldConfig,
    TeachingConfig,
)

METHODS: dict[str, type[DPDConfig] | type[IndependentConfig] | type[TeachingConfig]] = {
    "dpd": DPDConfig,
    "none": IndependentConfig,
    "bc": CloningConfig,
    "dagger": DAggerConfig,
    "on-policy": OnPolicyConfig,
    "progressive": ProgressiveConfig,
    "scaffold": ScaffoldConfig,
    "retrieval": RetrievalConfig,
    "kickstart": KickstartConfig,
    "ppd": ProximalConfig,
    "n-distill": GradientConfig,
    "reverse-kl": ReverseGradientConfig,
}
