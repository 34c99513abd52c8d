"""Gram matrices and solves beyond one call and one machine."""
