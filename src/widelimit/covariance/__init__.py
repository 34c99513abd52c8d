"""Covariances between positions of two inputs, and operations on them."""
