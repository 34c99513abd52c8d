import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.diagnostics import (
    effective_rank,
    kernel_alignment,
    kernel_drift,
    target_alignment,
)

RNG = np.random.default_rng(0)


def gram(n=5, features=3, outputs=None):
    shape = (n, features) if outputs is None else (n, outputs, features)
    j = RNG.standard_normal(shape)
    return np.einsum("ip,jp->ij", j, j) if outputs is None else np.einsum("iap,jbp->ijab", j, j)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("outputs", [None, 2])
def test_definitions(outputs):
    a, b = gram(outputs=outputs), gram(outputs=outputs)
    norm = np.linalg.norm
    assert_close(kernel_drift(a, b), norm((a - b).ravel()) / norm(b.ravel()))
    assert_close(
        kernel_alignment(a, b, centred=False), (a * b).sum() / norm(a.ravel()) / norm(b.ravel())
    )
    h = np.eye(5) - 1 / 5
    ac, bc = (np.einsum("ij,jk...,kl->il...", h, k, h) for k in (a, b))
    cka = (ac * bc).sum() / norm(ac.ravel()) / norm(bc.ravel())
    assert_close(kernel_alignment(a, b), cka)
    matrix = a if outputs is None else a.transpose(0, 2, 1, 3).reshape(10, 10)
    p = np.linalg.eigvalsh(matrix)
    p = p[p > 1e-9] / p.sum()
    assert_close(effective_rank(a), np.exp(-(p * np.log(p)).sum()), rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_what_they_do_not_see():
    a = gram()
    assert float(kernel_drift(a, a)) == 0
    assert_close(kernel_alignment(a, 7 * a), 1.0)
    assert_close(kernel_alignment(a, a + 3), 1.0)  # the same for all samples
    assert float(kernel_alignment(a, a + 3, centred=False)) < 1
    orthogonal = np.eye(4) + 0.25
    assert_close(effective_rank(3e200 * orthogonal), effective_rank(orthogonal))
    assert_close(kernel_drift(3e200 * orthogonal, 1e200 * orthogonal), 2.0)


@pytest.mark.usefixtures("x64")
def test_targets():
    y = RNG.standard_normal((5, 2))
    assert_close(target_alignment(y @ y.T, y), 1.0)
    full = np.einsum("ia,jb->ijab", y, y)
    assert_close(target_alignment(full, y, trace_axes=()), 1.0)
    a, centred = gram(), y - y.mean(0)
    expected = kernel_alignment(a, centred @ centred.T)
    assert_close(target_alignment(a, y), expected)
    with pytest.raises(ValueError, match=r"shape \(5, 5, 2, 2\) for y of shape \(5, 2\)"):
        target_alignment(a, y, trace_axes=())
    with pytest.raises(ValueError, match="without the axis of samples"):
        target_alignment(a, y, trace_axes=0)


@pytest.mark.usefixtures("x64")
def test_complex_kernels():
    j = RNG.standard_normal((4, 3)) + 1j * RNG.standard_normal((4, 3))
    a = j @ j.conj().T
    assert not jnp.iscomplexobj(kernel_alignment(a, a))
    assert_close(kernel_alignment(a, a), 1.0)
    assert_close(kernel_drift(2 * a, a), 1.0)
    assert_close(target_alignment(a, j), 1.0)
    assert float(effective_rank(a)) < 3 + 1e-9


def test_traced_kernels():
    a, b = gram().astype(np.float32), gram().astype(np.float32)
    drift, alignment = jax.jit(lambda a, b: (kernel_drift(a, b), kernel_alignment(a, b)))(a, b)
    assert_close(drift, kernel_drift(a, b))
    assert_close(alignment, kernel_alignment(a, b))
    assert np.isnan(jax.jit(kernel_drift)(a, 0 * b))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_rank_of_what_is_no_kernel(dtype):
    u = np.ones((6, 1))
    eps = float(jnp.finfo(dtype).eps)
    rounded = (u @ u.T + eps * RNG.standard_normal((6, 6))).astype(dtype)
    assert float(effective_rank(rounded)) < 1.1
    rank = jax.jit(effective_rank)
    assert_close(rank(rounded), effective_rank(rounded))
    negative = np.diag([1, 0.5, -0.05]).astype(dtype)
    with pytest.raises(ValueError, match=r"without negative eigenvalues .* got 5.0e-02"):
        effective_rank(negative)
    assert np.isnan(rank(negative))
    skew = np.array([[2, 0.9], [0.7, 2]], dtype)
    with pytest.raises(ValueError, match=r"conjugate transpose .* got 1.0e-01"):
        effective_rank(skew)
    assert np.isnan(rank(skew))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: kernel_drift(k, gram(4)), ValueError, "one shape"),
        (lambda k: kernel_drift(k, 0 * k), ValueError, "kernel0 that is not zero"),
        (lambda k: kernel_drift(k[:, :3], k[:, :3]), ValueError, r"\[n, n, ...\]"),
        (lambda k: effective_rank(np.float32(1)), ValueError, "trace_axes without the axis"),
        (lambda k: kernel_drift("kernel", k), TypeError, "kernel to be an array, got str"),
        (lambda k: kernel_alignment(k, k * np.nan), ValueError, "finite"),
        (lambda k: kernel_alignment(k, np.full((5, 5), 0.1)), ValueError, "centred kernels"),
        (lambda k: kernel_alignment(k[:1, :1], k[:1, :1]), ValueError, "centred kernels"),
        (lambda k: target_alignment(k, np.full((5, 1), 0.3)), ValueError, "centred kernels"),
        (lambda k: effective_rank(k * np.inf), ValueError, "finite entries"),
        (lambda k: effective_rank(-np.eye(2)), ValueError, "positive eigenvalue"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(gram())
