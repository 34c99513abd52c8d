"""Kernels of finite networks: any function of parameters and inputs."""
