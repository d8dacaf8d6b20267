"""Cooperative distillation: saved policies imitate each other where the other earns more."""
