"""Kernels of finite networks: any function of parameters and inputs."""

from widelimit.finite.empirical.implementations import NtkImplementation as NtkImplementation
from widelimit.finite.empirical.kernels import empirical_kernel_fn as empirical_kernel_fn
from widelimit.finite.empirical.kernels import empirical_nngp_fn as empirical_nngp_fn
from widelimit.finite.empirical.kernels import empirical_ntk_fn as empirical_ntk_fn
from widelimit.finite.empirical.operator import NTKOperator as NTKOperator
from widelimit.finite.empirical.products import empirical_ntk_vp_fn as empirical_ntk_vp_fn
from widelimit.finite.empirical.projection import projected_gradients as projected_gradients
