"""From inputs to kernels: plans, costs, and the engines that compute."""
