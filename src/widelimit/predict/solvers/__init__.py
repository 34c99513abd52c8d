"""Solvers of the linear systems of training sets: their contract, and three of them."""
