"""Errors that are not the fault of an argument's type or value, and the names in those that are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping


class ModelError(Exception):
    """A model file is missing, foreign or broken; the message has path, expected and found."""


@contextlib.contextmanager
def naming(arguments: Mapping[str, str]) -> Iterator[None]:
    """Let errors about an argument of an inner call name what the caller gave instead.

    They are TypeError and ValueError, with messages that begin with the name.

    Args:
        arguments: From the inner name, with which the message begins, to the outer one.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        name, colon, text = str(error).partition(":")
        if name not in arguments:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(arguments[name] + colon + text) from error
