"""The table of all distillation methods; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dpd.agents.config import LearnerConfig
from dpd.distill.config import MethodConfig
from dpd.distill.in_loss_config import (
    GradientConfig,
    KickstartConfig,
    ProximalConfig,
    ReverseGradientConfig,
)
from dpd.distill.peers_config import DPDConfig, IndependentConfig
from dpd.distill.presets import DPD_DEFAULT_PRESETS, DPD_PRESETS, ON_POLICY_PRESETS, MethodPresets
from dpd.distill.teaching_config import (
    CloningConfig,
    DAggerConfig,
    OnPolicyConfig,
    ProgressiveConfig,
    RetrievalConfig,
    ScaffoldConfig,
)


@dataclass(frozen=True)
class MethodSpec:
    """A distillation method: a row of METHODS."""

    settings: type[MethodConfig]
    method: str
    """Import path of the method, `module:class`; the module may import torch."""
    presets: MethodPresets = field(default_factory=dict)
    """Settings of the method under named presets, which no other method has."""
    default_presets: Mapping[type[LearnerConfig], str] = field(default_factory=dict)
    """The preset that applies if none of the method is named, by the learners that it is for."""


SUPERVISED = "dpd.distill.teaching:Supervised"
METHODS: dict[str, MethodSpec] = {
    "dpd": MethodSpec(
        DPDConfig, "dpd.distill.peers:DualDistillation", DPD_PRESETS, DPD_DEFAULT_PRESETS
    ),
    "none": MethodSpec(IndependentConfig, "dpd.distill.independent:Independent"),
    "bc": MethodSpec(CloningConfig, SUPERVISED),
    "dagger": MethodSpec(DAggerConfig, SUPERVISED),
    "on-policy": MethodSpec(OnPolicyConfig, SUPERVISED, ON_POLICY_PRESETS),
    "progressive": MethodSpec(ProgressiveConfig, "dpd.distill.progressive:Progressive"),
    "scaffold": MethodSpec(ScaffoldConfig, "dpd.distill.scaffold:Scaffold"),
    "retrieval": MethodSpec(RetrievalConfig, "dpd.distill.retrieval:Retrieval"),
    "kickstart": MethodSpec(KickstartConfig, "dpd.distill.in_loss:InLoss"),
    "ppd": MethodSpec(ProximalConfig, "dpd.distill.in_loss:InLoss"),
    "n-distill": MethodSpec(GradientConfig, "dpd.distill.in_loss:TrueGradient"),
    "reverse-kl": MethodSpec(ReverseGradientConfig, "dpd.distill.in_loss:TrueGradient"),
}
"""All methods, by the name that `--method` takes."""
