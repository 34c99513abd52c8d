"""GPyTorchKernel: a kernel of GPyTorch and BoTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel

from widelimit.estimators.family import Family, batched_kernels, pulled_back
from widelimit.layers.base import Layer
from widelimit.typing import NetworkLike, Scalar, Size


class _Covariance(torch.autograd.Function):
    """Kernels computed by JAX, with the derivatives of JAX."""

    @staticmethod
    def forward(
        context: Any, family: Family, values: torch.Tensor, x1: torch.Tensor, x2: torch.Tensor
    ) -> torch.Tensor:
        """Returns kernels [batch, n1, n2]."""
        context.family = family
        context.save_for_backward(values, x1, x2)
        kernels = batched_kernels(family, *map(_to_numpy, (values, x1, x2)))
        return torch.tensor(kernels, dtype=x1.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, cotangent: torch.Tensor) -> Any:
        """Returns derivatives by values, x1 and x2."""
        tensors = context.saved_tensors
        slopes = pulled_back(context.family, *map(_to_numpy, (*tensors, cotangent)))
        pairs = zip(slopes, tensors, strict=True)
        return None, *(torch.tensor(slope, dtype=tensor.dtype) for slope, tensor in pairs)


class GPyTorchKernel(Kernel):
    """The NNGP or the NTK of an infinite network, as a kernel of GPyTorch, on the CPU.

    PyTorch trains W_std and b_std of a named network, and one length scale or one for each feature,
    by which inputs are divided first. It has derivatives by inputs too, for BoTorch's acquisition
    functions. They are first derivatives. JAX computes in float64, and compiles for numbers of
    samples up to the next power of two. `ScaleKernel(GPyTorchKernel())` has a scale of outputs.

    Args:
      network: "fcn", "cnn" or a network, whose hyper-parameters stay as they are.
      kernel: "nngp" or "ntk".
      depth: hidden layers of a named network.
      activation: nonlinearity of a named network, a name or a layer; see `NNGPRegressor`.
      W_std: standard deviation of the weights of a named network to begin with.
      b_std: standard deviation of its biases to begin with; None means no bias.
      image_shape: (height, width, channels) of images that come as rows, or None.
      **kwargs: keywords of `gpytorch.kernels.Kernel`, such as `ard_num_dims`.

    Raises:
      ValueError: a batch of hyper-parameters, which is not supported.

    Example:
      >>> import torch
      >>> from widelimit.estimators import GPyTorchKernel
      >>> x = torch.ones(3, 2)
      >>> GPyTorchKernel(depth=2)(x).to_dense().shape
      torch.Size([3, 3])
    """

    has_lengthscale = True

    def __init__(
        self,
        network: NetworkLike | str = "fcn",
        kernel: str = "nngp",
        depth: Size = 3,
        activation: Layer | str = "relu",
        W_std: Scalar = 2**0.5,
        b_std: Scalar | None = 0.1,
        image_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.batch_shape:
            raise ValueError(
                f"expected no batch_shape, got {tuple(self.batch_shape)}: give each output a "
                "model of its own, such as BoTorch's ModelListGP"
            )
        shape = None if image_shape is None else tuple(image_shape)
        self.family = Family(kernel, network, depth, activation, b_std is not None, shape)
        self.lengthscale = 1.0
        for name, value in (("W_std", W_std), ("b_std", b_std)):
            if name in self.family.names:
                raw = torch.nn.Parameter(torch.zeros(1))
                self.register_parameter(f"raw_{name}", raw)
                self.register_constraint(f"raw_{name}", Positive())
                setattr(self, name, value)

    @property
    def is_stationary(self) -> bool:
        """False: the kernel depends on more than differences of inputs."""
        return False

    @property
    def W_std(self) -> torch.Tensor:
        """The standard deviation of the weights."""
        return self._value("W_std")

    @W_std.setter
    def W_std(self, value: float | torch.Tensor) -> None:
        self._set("W_std", value)

    @property
    def b_std(self) -> torch.Tensor:
        """The standard deviation of the biases."""
        return self._value("b_std")

    @b_std.setter
    def b_std(self, value: float | torch.Tensor) -> None:
        self._set("b_std", value)

    def forward(
        self,
        x1: torch.Tensor,
        x2: torch.Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,  # noqa: ARG002 - keywords of other kernels
    ) -> torch.Tensor:
        """Returns the kernel [..., n1, n2] of inputs [..., n1, d] and [..., n2, d].

        Args:
          x1: inputs.
          x2: inputs.
          diag: whether to return [..., n] of pairs of rows.
          last_dim_is_batch: whether each feature is a batch of its own.
          **params: other keywords of GPyTorch.

        Raises:
          NotImplementedError: features as batches.
        """
        if last_dim_is_batch:
            raise NotImplementedError("expected last_dim_is_batch=False, got True")
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        first, second = (self._rows(x, batch) for x in (x1, x2))
        if diag:
            pairs = (x.reshape(-1, 1, x.shape[-1]) for x in (first, second))
            return _Covariance.apply(self.family, self._values(x1), *pairs).reshape(*batch, -1)
        kernels = _Covariance.apply(self.family, self._values(x1), first, second)
        return kernels.reshape(*batch, *kernels.shape[-2:])

    def _rows(self, x: torch.Tensor, batch: torch.Size) -> torch.Tensor:
        """Returns scaled inputs [batch, n, d]."""
        scaled = x / torch.as_tensor(self.lengthscale).to(x)
        return scaled.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])

    def _values(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the hyper-parameters."""
        values = [self._value(name) for name in self.family.names]
        return torch.cat(values).to(x) if values else x.new_zeros(0)

    def _value(self, name: str) -> torch.Tensor:
        return getattr(self, f"raw_{name}_constraint").transform(getattr(self, f"raw_{name}"))

    def _set(self, name: str, value: float | torch.Tensor) -> None:
        raw = getattr(self, f"raw_{name}_constraint").inverse_transform(
            torch.as_tensor(value).to(getattr(self, f"raw_{name}"))
        )
        self.initialize(**{f"raw_{name}": raw.reshape(1)})


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Returns a float64 array.

    Raises:
      ValueError: a tensor of another device.
    """
    if tensor.device.type != "cpu":
        raise ValueError(f"expected tensors on the CPU, got one on {tensor.device}")
    return np.asarray(tensor.detach().numpy(), np.float64)
