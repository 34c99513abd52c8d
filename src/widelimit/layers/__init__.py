"""Layers: frozen dataclasses with a finite form and an infinite-width limit."""
