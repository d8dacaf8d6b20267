"""Distillation methods: a table of settings, each of which builds its method."""

from __future__ import annotations

from dpd.distill.peers_config import DPDConfig, IndependentConfig

METHODS: dict[str, type[DPDConfig] | type[IndependentConfig]] = {
    "dpd": DPDConfig,
    "none": IndependentConfig,
}
