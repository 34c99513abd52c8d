"""Derivatives of the fused engine's kernels: programs run forwards, then backwards."""
