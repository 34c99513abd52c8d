"""What solves the systems of training sets: the contract of a solver, and three of them."""
