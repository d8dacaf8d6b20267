"""Errors that a user sees as one line."""

from __future__ import annotations


class BadInput(ValueError):
    """Something the user gave is wrong; the message says what, and what to give instead."""
