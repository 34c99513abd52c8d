"""Functions of users, read as equations of JAX."""
