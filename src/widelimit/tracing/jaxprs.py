"""The names of JAX by which traced functions are read and run."""

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

__all__ = ["ClosedJaxpr", "Jaxpr", "Literal", "Var", "jaxpr_as_fun"]
