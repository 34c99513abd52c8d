"""Layers: frozen dataclasses that know their finite form and their infinite-width limit."""
