"""Networks of finite width: empirical kernels, linearisation, Monte Carlo."""
