"""Errors that are not the fault of an argument's type or value."""

from __future__ import annotations


class ModelError(Exception):
    """A model file is missing, foreign or broken; the message has path, expected and found."""
