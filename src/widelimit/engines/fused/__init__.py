"""The fused engine: whole networks on slices of covariances that stay in cache (CPU, numba)."""
