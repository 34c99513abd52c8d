"""Text for users: short values, tables, and warnings at the user's line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

import jax
import numpy as np

from widelimit._pytree import is_concrete

# Arrays of more entries are shown by their shapes.
_ENTRIES = 8
_CHARACTERS = 80
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def shown(value: object) -> str:
    """Returns a value in at most 80 characters on one line, large arrays by their shape."""
    if isinstance(value, np.ndarray | jax.Array):
        concrete = is_concrete(value)
        if not concrete or np.size(value) > _ENTRIES:
            return f"{'an' if concrete else 'a traced'} array of shape {np.shape(value)}"
        value = value.item() if value.ndim == 0 and isinstance(value, np.ndarray) else value
        text = str(value)
    else:
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 3] + "..."


def warn(message: str, category: type[Warning]) -> None:
    """Warns at the user's line: the last one outside this package."""
    level = 2
    while os.path.abspath(sys._getframe(level - 1).f_code.co_filename).startswith(_PACKAGE):
        level += 1
    warnings.warn(message, category, stacklevel=level)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the rows under their header; the first column is left-aligned, the others right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([aligned(lines[0]), rule, *map(aligned, lines[1:])])
