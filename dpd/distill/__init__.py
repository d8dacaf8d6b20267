"""Distillation methods: a table of settings, each of which builds its method."""

from __future__ import annotations

from dpd.distill.peers_config import DPDConfig, IndependentConfig
from dpd.distill.retrieval_config import RetrievalConfig
from dpd.distill.scaffold_config import ScaffoldConfig
from dpd.distill.teaching_config import (
    CloningConfig,
    DAggerConfig,
    GradientConfig,
    KickstartConfig,
    OnPolicyConfig,
    ProgressiveConfig,
    ProximalConfig,
    ReverseGradientConfig,
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
