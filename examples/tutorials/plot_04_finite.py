r"""
A finite network beside its limit
=================================

A network of finite width has a tangent kernel too, the empirical one, :math:`\hat\Theta(x, x') =
\partial_\theta f(x) \cdot \partial_\theta f(x')`. At the start it is random and near the kernel of
the limit; training moves it. How near, and how far, decides whether the limit describes the network
that you train. This page measures both.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot

import widelimit as wl
from widelimit import stax

# %%
# The network of any width, and its limit
# ---------------------------------------


def network(width):
    return stax.serial(
        stax.Dense(width, W_std=1.5, b_std=0.3),
        stax.Erf(),
        stax.Dense(width, W_std=1.5, b_std=0.3),
        stax.Erf(),
        stax.Dense(1),
    )


rng = np.random.default_rng(0)
x = jnp.asarray(rng.standard_normal((24, 3)))
y = jnp.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
limit = network(512).kernel_fn(x, None, "ntk")  # does not depend on the width

# %%
# The empirical kernel of one network
# -----------------------------------
#
# ``wl.empirical_ntk_fn`` takes any function ``f(params, x)`` of trees of arrays, also one of Flax
# or Equinox. ``vmap_axes=0`` says that samples are treated one by one, which is much faster; with
# several outputs the mean over them is taken. All implementations return the same numbers; for wide
# layers, structured derivatives need the fewest operations by far.

init_fn, apply_fn, kernel_fn = network(512)
_, params = init_fn(jax.random.PRNGKey(0), x.shape)
STRUCTURED = wl.NtkImplementation.STRUCTURED_DERIVATIVES
ntk_fn = wl.empirical_ntk_fn(apply_fn, vmap_axes=0, implementation=STRUCTURED)
finite = ntk_fn(x, None, params)

drift = float(wl.diagnostics.kernel_drift(finite, limit))
alignment = float(wl.diagnostics.kernel_alignment(finite, limit))
print(f"|K - K_limit| / |K_limit| = {drift:.3f}, centred alignment {alignment:.4f}")

# %%
# Towards the limit
# -----------------
#
# The distance falls as :math:`1 / \sqrt{\mathrm{width}}`. Five networks at each width:

widths = (16, 64, 256, 1024)


def distances_at(width):
    init_fn, apply_fn, _ = network(width)
    ntk_fn = wl.empirical_ntk_fn(apply_fn, vmap_axes=0, implementation=STRUCTURED)

    @jax.jit
    def distance(key):
        _, params = init_fn(key, x.shape)
        return wl.diagnostics.kernel_drift(ntk_fn(x, None, params), limit)

    return [float(distance(key)) for key in jax.random.split(jax.random.PRNGKey(0), 5)]


distances = np.array([distances_at(width) for width in widths])
drawn = wl.plot.drift(widths, {"empirical NTK at the start": distances}, xlabel="width", power=-0.5)
_ = drawn["empirical NTK at the start"].line.axes.set_ylabel("distance from the limit")
slope = np.polyfit(np.log(widths), np.log(distances.mean(1)), 1)[0]
print(f"exponent {slope:.2f}")

# %%
# Their spectra
# -------------
#
# The network of width 512 has the spectrum of the limit. At width 64 every eigenvalue is too small
# here, the smallest by a factor of two: they decide how long the last part of training takes.

narrow_init, narrow_fn, _ = network(64)
_, narrow = narrow_init(jax.random.PRNGKey(1), x.shape)
narrow_kernel_fn = wl.empirical_ntk_fn(narrow_fn, vmap_axes=0, implementation=STRUCTURED)
narrow_kernel = narrow_kernel_fn(x, None, narrow)
drawn = wl.plot.spectrum({"limit": limit, "width 512": finite, "width 64": narrow_kernel})

# %%
# A training run
# --------------
#
# Plain gradient descent on half the mean squared error. ``wl.diagnostics.report`` takes the points
# of a run; a generator trains on between them. It measures how far the parameters have moved, how
# far the kernel has drifted from where it began, and the gap between the network and its
# linearisation at the start, relative to how far the outputs have moved.

steps = np.array([0, 1, 4, 16, 64, 256, 1024])
learning_rate = 0.25 * float(wl.predict.max_learning_rate(limit, y_train_size=y.size))


def run(apply_fn, params):
    def loss(params):
        return 0.5 * jnp.mean((apply_fn(params, x) - y) ** 2)

    def step(_, params):
        gradient = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)

    descend = jax.jit(lambda params, count: jax.lax.fori_loop(0, count, step, params))
    yield params
    for count in np.diff(steps):
        params = descend(params, count)
        yield params


reports = {}
for width in (32, 512):
    init_fn, apply_fn, _ = network(width)
    _, params = init_fn(jax.random.PRNGKey(2), x.shape)
    points = run(apply_fn, params)
    reports[width] = wl.diagnostics.report(
        apply_fn, points, x, y, steps=steps, implementation=STRUCTURED
    )
print(reports[512])

# %%
# The narrow network leaves its kernel and its linearisation behind; the wide one stays near both.
# It is said to train lazily.

with wl.plot.style():
    _, axes = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    for ax, (width, report) in zip(axes, reports.items(), strict=True):
        quantities = {
            "gap to the linearisation": report.linearization_gap,
            "drift of the kernel": report.kernel_drift,
            "parameters moved": report.parameter_movement,
        }
        wl.plot.drift(steps, quantities, ax=ax)
        ax.set_title(f"width {width}")
    _ = axes[0].set_ylabel("relative size")

# %%
# What the kernel predicts
# ------------------------
#
# The linearised network is trained in closed form, from the empirical kernel at the start and the
# outputs there: step by step as gradient descent does it. The prediction at other points needs the
# kernel between them and the training set.

x_test = jnp.asarray(rng.standard_normal((10, 3)))
ntk_fn = wl.empirical_ntk_fn(apply_fn, vmap_axes=0, implementation=STRUCTURED)
predict_fn = wl.predict.discrete_gradient_descent_mse(
    ntk_fn(x, None, params), y, learning_rate=learning_rate
)
starts = apply_fn(params, x), apply_fn(params, x_test)
_, predicted = predict_fn(256, *starts, ntk_fn(x_test, x, params))

trained = list(run(apply_fn, params))[5]
actual = apply_fn(trained, x_test)
error = jnp.linalg.norm(actual - predicted) / jnp.linalg.norm(actual - starts[1])
print(
    f"after 256 steps, at new points: the first kernel is off by {float(error):.1%} of the movement"
)

# %%
# ``wl.linearize`` is the same statement in the space of parameters: a function of parameters and
# inputs that is linear in the parameters. Trained by the same steps, it does what the kernel
# predicts.

linear_fn = wl.linearize(apply_fn, params)
linear = list(run(linear_fn, params))[5]
apart = float(jnp.abs(linear_fn(linear, x_test) - predicted).max())
print(f"linearised network against the prediction: {apart:.1e}")

# %%
# A kernel too large for memory
# -----------------------------
#
# ``memory="1GiB"`` bounds what derivatives take. ``wl.NTKOperator`` never forms the matrix: it
# multiplies by it, solves with it, and is an operator for the iterative methods of SciPy.

operator = wl.NTKOperator(apply_fn, params, x)
residual = y - apply_fn(params, x)
step = operator.solve(residual, ridge=1e-2)
dense = jnp.linalg.solve(ntk_fn(x, None, params) + 1e-2 * jnp.eye(len(x)), residual)
print(f"solve without the matrix, against the dense one: {float(jnp.abs(step - dense).max()):.1e}")
