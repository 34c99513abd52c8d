"""The public `Kernel`: its axes, its conversion, and what `get` asks of it."""
