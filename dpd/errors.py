"""Errors that the command line prints as one line."""

from __future__ import annotations


class BadInput(ValueError):
    """Wrong input from the user; the message names the error and the remedy."""
