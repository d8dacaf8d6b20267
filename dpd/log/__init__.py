"""Logs of a run: metrics.csv, TensorBoard and the display."""
