"""Options of layers that are members of an enum."""

from __future__ import annotations

import enum


def option_name(kind: type[enum.Enum], field: str, value: object) -> str:
    """Returns an option as the name of a member of an enum.

    Args:
      kind: the enum.
      field: the name of the option, for the message.
      value: a member, or its exact name.

    Raises:
      ValueError: anything else.
    """
    if isinstance(value, kind):
        return value.name
    if isinstance(value, str) and value in kind.__members__:
        return value
    names = ", ".join(repr(name) for name in kind.__members__)
    raise ValueError(f"expected {field} to be one of {names} or a {kind.__name__}, got {value!r}")
