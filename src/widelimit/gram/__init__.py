"""Gram matrices tile by tile, within a budget of memory."""

from widelimit.gram.assemble import gram as gram
