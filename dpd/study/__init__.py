"""Compare runs, and dual policy distillation with its controls."""
