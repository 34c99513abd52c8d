r"""
Writing an activation, a layer and a solver
===========================================

What is missing can be written outside of the library, and then works as if it were inside: finite
networks, both kernels, plans, tiles and ensembles. This page writes one of each, and checks each
against numbers that do not come from it. :doc:`/extending` has a recipe for the other parts, such
as combinators and engines.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from matplotlib import pyplot

import widelimit as wl
from widelimit import extend, stax

rng = np.random.default_rng(0)
x = rng.standard_normal((6, 5)).astype(np.float32)

# %%
# An activation
# -------------
#
# Without any mathematics: ``Elementwise`` takes a function, and finds its dual :math:`E[\phi(u)
# \phi(v)]` as a series of Hermite polynomials.

by_series = stax.serial(stax.Dense(512), stax.Elementwise(lambda x: x**2 / 2), stax.Dense(1))

# %%
# With a formula it is faster and exact. For :math:`\phi(x) = a x^2` and a Gaussian pair with
# covariance :math:`c` and variances :math:`q, q'`,
#
# .. math:: E[\phi(u) \phi(v)] = a^2 (q q' + 2 c^2), \qquad E[\phi'(u) \phi'(v)] = 4 a^2 c.
#
# ``a`` is a field of the class, and so a leaf of the network: it can be learnt.


@extend.pytree
class Square(extend.ElementwiseLayer):
    """f(x) = a x^2."""

    a: float = 1.0

    def activation(self, x):
        return self.a * x**2

    def dual(self, c, q1, q2, gap):
        return extend.Dual(self.a**2 * (q1 * q2 + 2 * c**2), 4 * self.a**2 * c, None)


def network(width):
    return stax.serial(stax.Dense(width), Square(0.5), stax.Dense(1))


exact = network(512).kernel_fn(x, None, "ntk")
series = by_series.kernel_fn(x, None, "ntk")
print(f"formula against series: {float(jnp.abs(exact / series - 1).max()):.1e}")

# %%
# Neither knows the finite network. An average over many of them is an independent check, with its
# own standard error:

init_fn, apply_fn, _ = network(256)
sampled = wl.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.PRNGKey(0), n_samples=200,
                                   vmap_axes=0, standard_error=True)  # fmt: skip
mean, error = sampled(x, None, "nngp")
apart = np.abs(mean - network(256).kernel_fn(x, None, "nngp")) / error
print(f"distance from 200 finite networks: {apart.max():.1f} standard errors at most")

# %%
# A layer
# -------
#
# A layer has a finite half, ``init``, ``apply`` and ``output_shape``, and an infinite half, which
# says what becomes of covariances. It may not know how these are stored. It says which offsets
# between positions it reads (``needs``), and calls verbs that map covariances to covariances
# (``propagate``).
#
# This one turns an image upside down. Position :math:`p` reads position :math:`P - 1 - p`: a
# stencil is the table of what each output position reads.


@extend.pytree
class UpsideDown(extend.Layer):
    """Output position p holds what was at P - 1 - p of the first spatial axis."""

    def apply(self, params, x, context):
        return x[:, ::-1]

    def _stencils(self, signal):
        first, *others = signal.spatial
        return (
            extend.index_stencil(first, tuple(reversed(range(first)))),
            *(extend.index_stencil(size, tuple(range(size))) for size in others),
        )

    def needs(self, need, signal):
        reads = self._stencils(signal)
        return need.map(lambda offsets: extend.needed_offsets(reads, offsets))

    def propagate(self, cov, site):
        reads = self._stencils(site.signal_in)
        return extend.stencils(cov, reads, 1.0, site.signal_out, site.need_out)


def turned(*before):
    conv = stax.Conv(64, (3, 3), padding="SAME")
    return stax.serial(*before, conv, stax.Relu(), stax.Conv(64, (3, 3)), stax.GlobalAvgPool())


images = rng.standard_normal((3, 6, 5, 2)).astype(np.float32)
inside = turned(UpsideDown()).kernel_fn(images, None, "ntk")
outside = turned().kernel_fn(images[:, ::-1], None, "ntk")
print(f"layer against turned images: {float(jnp.abs(inside - outside).max()):.1e}")
print(wl.plan(turned(UpsideDown()), images.shape))

# %%
# A network that averages over a picture and its mirror image is invariant under turning. Branches
# which share weights cannot be summed over as if they were independent, but the kernel of the
# average is the average of kernels over the group. Any function ``kernel_fn(x1, x2, get)`` makes an
# ensemble:

plain = turned()


def invariant_kernel(x1, x2, get):
    x2 = x1 if x2 is None else x2
    both = [plain.kernel_fn(x1, x2[:, ::step], get) for step in (1, -1)]
    return jax.tree.map(lambda a, b: (a + b) / 2, *both)


y = np.array([[1.0], [-1.0], [0.5]])
ensemble = wl.InfiniteEnsemble(invariant_kernel, images, y)
print("turned training images:", np.round(ensemble.mean(images[:, ::-1])[:, 0], 3))

# %%
# A solver
# --------
#
# A solver gets the kernel of the training set with its ridge, and answers questions about the
# inverse. ``factorise`` does once what ``solve`` needs; both work in float64. This one never
# factorises, but iterates with conjugate gradients, and remembers how it converged.


class Iterative(extend.Solver):
    """Conjugate gradients of SciPy, one right-hand side after another."""

    def __init__(self):
        self.residuals = []  # one list for each right-hand side

    def factorise(self, system):
        return system.host_matrix()

    def solve(self, matrix, b):
        return np.stack([self._column(matrix, column) for column in np.asarray(b).T], -1)

    def _column(self, matrix, b):
        self.residuals.append([])

        def record(solution):
            self.residuals[-1].append(np.linalg.norm(matrix @ solution - b) / np.linalg.norm(b))

        return scipy.sparse.linalg.cg(matrix, b, rtol=1e-10, callback=record)[0]


x_train = np.linspace(-2, 2, 60, dtype=np.float32)[:, None]
y_train = np.sin(3 * x_train)
net = stax.serial(stax.Dense(512, 2.0, 0.5), stax.Erf(), stax.Dense(1))
curves = {}
for noise in (0.3, 0.03):
    solver = Iterative()
    options = {"inference": "bayes", "noise": noise}
    iterated = wl.InfiniteEnsemble(net, x_train, y_train, solver=solver, **options)
    mean = iterated.mean(x_train)[:, 0]
    direct = wl.InfiniteEnsemble(net, x_train, y_train, **options).mean(x_train)[:, 0]
    print(f"noise {noise}: {len(solver.residuals)} solves, "
          f"{float(jnp.abs(mean - direct).max()):.1e} from the default solver")  # fmt: skip
    curves[f"noise {noise}"] = solver.residuals[-1]

with wl.plot.style():
    _, ax = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for (name, residuals), line in zip(curves.items(), ("-", "--"), strict=True):
        ax.semilogy(1 + np.arange(len(residuals)), residuals, line, label=name)
    ax.set(xlabel="iteration", ylabel="relative residual")
    ax.xaxis.get_major_locator().set_params(integer=True)
    _ = ax.legend()

# %%
# The last solve is that of the mean. Those before it belong to the library: by inverse iteration it
# asks whether the system can be trusted. Less noise makes the system worse conditioned, and
# conjugate gradients slower. The library's own ``predict.ConjugateGradients`` also works inside of
# ``jax.jit``.
