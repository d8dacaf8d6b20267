"""Fidelity, the closeness of a student to its teacher: measures, state sets, audit, report."""
