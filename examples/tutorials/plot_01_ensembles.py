r"""
Infinite ensembles and training time
====================================

Train many networks on the same data, each from its own random start, and they disagree wherever the
data say little. Let their width go to infinity and this ensemble is a Gaussian process at every
moment of training: its mean and its spread have a closed form (`arXiv:1902.06720
<https://arxiv.org/abs/1902.06720>`_). This page trains such an ensemble, follows it through time,
and checks it against networks of finite width.
"""

import jax
import jax.numpy as jnp
import numpy as np

import widelimit as wl
from widelimit import stax

# %%
# A network and some data
# -----------------------
#
# A network is written once. ``Dense(256, ...)`` states the width of the finite network; the kernels
# are those of infinite width, whatever that number is. ``W_std`` and ``b_std`` are the standard
# deviations of weights and biases in the NTK parameterisation, where a layer computes :math:`z' =
# W_\mathrm{std}\, W z / \sqrt{n} + b_\mathrm{std}\, b` and all parameters start as standard normal
# numbers.

net = stax.serial(
    stax.Dense(256, W_std=3.0, b_std=1.0),
    stax.Erf(),
    stax.Dense(256, W_std=1.5, b_std=0.1),
    stax.Erf(),
    stax.Dense(1, W_std=1.0, b_std=0.1),
)

# %%
# The target is a sine whose amplitude grows with the input. We leave a gap around zero, in order to
# see what the ensemble does there.


def target(x):
    return (0.4 + 0.6 * x) * jnp.sin(5 * x)


rng, noise = np.random.default_rng(0), 0.15
x = jnp.asarray([-1.0, -0.8, -0.55, -0.4, 0.35, 0.6, 0.8, 1.0])[:, None]
y = target(x) + noise * rng.standard_normal(x.shape)
x_test = jnp.asarray(rng.uniform(-1, 1, (40, 1)))
y_test = target(x_test) + noise * rng.standard_normal(x_test.shape)

# %%
# The learning rate
# -----------------
#
# Gradient descent multiplies the error along each eigenvector of the tangent kernel by :math:`1 -
# \eta \lambda / N` in every step. It diverges beyond :math:`2 N / \lambda_\mathrm{max}`, which
# :func:`widelimit.predict.max_learning_rate` returns. The infinite ensemble follows gradient flow,
# the limit of small steps; one unit of ``t`` is one step.

tangent_kernel = net.kernel_fn(x, None, "ntk")
largest = wl.predict.max_learning_rate(tangent_kernel, y_train_size=y.size)
learning_rate = 0.1 * float(largest)
print(f"largest stable learning rate {float(largest):.3f}, ours {learning_rate:.3f}")

# %%
# The ensemble at several times
# -----------------------------
#
# An ensemble is made from a network and data. ``at(t)`` is the same ensemble after ``t`` steps; it
# shares the kernels and their eigendecomposition, so that another time costs next to nothing.

ensemble = wl.InfiniteEnsemble(net, x, y, learning_rate=learning_rate)
early = ensemble.at(t=20)
print("after 20 steps:", early.mean(x_test[:3])[:, 0], "+-", early.std(x_test[:3])[:, 0])

# %%
# At the start the mean is zero and the band is the prior. Training pulls the networks to the data.
# In the gap they go on to disagree however long they are trained. Outside the data they agree, and
# are wrong: the error function saturates, so that all of them go on flat. A band tells how much
# networks differ, not how far they are from the truth.

grid = jnp.linspace(-1.4, 1.4, 141)[:, None]
panels = wl.plot.ensemble(ensemble, grid, (0, 20, 400, np.inf), data=(x, y))
for panel in panels:
    panel.axes.plot(grid, target(grid), color="black", linewidth=1, alpha=0.6)
_ = panels[0].axes.set_ylim(-2.6, 2.6)

# %%
# The loss over time
# ------------------
#
# The loss of a network drawn from the ensemble is a random number, and its mean and standard
# deviation are exact too. ``at`` takes an array of times.

t = np.array([0, *np.geomspace(1, 1e4, 25)])
over_time = ensemble.at(t)
losses = {"training": over_time.loss(x, y), "test": over_time.loss(x_test, y_test)}
drawn = wl.plot.losses(t, losses)

# %%
# The training loss falls without end: an infinite network interpolates, noise included. The test
# loss turns: where it is smallest is the time to stop.

best = int(np.argmin(losses["test"].mean))
print(f"smallest test loss {losses['test'].mean[best]:.4f} after {t[best]:,.0f} steps")

# %%
# Do networks of finite width agree?
# ----------------------------------
#
# Twenty networks of width 256, trained by plain gradient descent with the same learning rate.
# ``init_fn`` and ``apply_fn`` are ordinary functions, and JAX trains all networks at once.

init_fn, apply_fn, kernel_fn = net
steps, members = 400, 20


@jax.jit
def train(key):
    _, params = init_fn(key, x.shape)

    def loss(params):
        return 0.5 * jnp.mean((apply_fn(params, x) - y) ** 2)

    def step(params, _):
        gradient = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), None

    params, _ = jax.lax.scan(step, params, length=steps)
    return apply_fn(params, grid)[:, 0]


outputs = np.stack([train(key) for key in jax.random.split(jax.random.PRNGKey(0), members)])

# %%
# Dashed: their mean, dotted: two standard deviations. The mean of 20 networks is uncertain by
# :math:`1 / \sqrt{20}` of the width of the band.

(panel,) = wl.plot.ensemble(ensemble, grid, (steps,), data=(x, y))
finite_mean, finite_std = outputs.mean(0), outputs.std(0, ddof=1)
wl.plot.dotted_band(grid[:, 0], finite_mean, 2 * finite_std, color="#D55E00", ax=panel.axes)

trained = ensemble.at(steps)
apart = finite_mean - trained.mean(grid)[:, 0]
errors = np.abs(apart) / (finite_std / np.sqrt(members))
print(f"distance of the means: {np.median(errors):.1f} standard errors (median), "
      f"{errors.max():.1f} at most, of {len(grid)} correlated points")  # fmt: skip

# %%
# Bayesian inference
# ------------------
#
# The same network may be conditioned on the data instead of being trained on them. Then the
# ensemble is a Gaussian-process posterior with the NNGP kernel, and ``noise`` is the standard
# deviation of the noise in the targets. ``noise=True`` in ``std`` returns the spread of a new
# observation instead of that of the function.

posterior = wl.InfiniteEnsemble(net, x, y, inference="bayes", noise=noise)
inside = np.abs(y_test - posterior.mean(x_test)) < 2 * posterior.std(x_test, noise=True)
print(f"log evidence {float(posterior.log_marginal_likelihood()):.2f}; ", end="")
print(f"{int(inside.sum())} of {len(inside)} new observations are inside of two deviations")
drawn = wl.plot.ensemble(posterior, grid, data=(x, y))

# %%
# Where to go next: the hyper-parameters ``W_std``, ``b_std`` and ``noise`` were guessed here.
# *Hyper-parameters by evidence* learns them from the data.
