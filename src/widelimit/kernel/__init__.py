"""The public `Kernel`: its axes, its conversion, and the argument `get`."""
