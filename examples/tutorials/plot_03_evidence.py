r"""
Hyper-parameters by evidence
============================

How large should the weights be, how large the biases, how much noise is in the targets? The
evidence of the data, the marginal likelihood :math:`p(y \mid x)`, answers without a validation set:
it is the probability that the prior gives to what was observed. For an infinite network it is a
closed form, and JAX differentiates it with respect to every hyper-parameter.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib import pyplot
from scipy.optimize import minimize

import widelimit as wl
from widelimit import stax

# %%
# Forty noisy observations of a function with two scales.


def target(x):
    return jnp.sin(3 * x) + 0.3 * jnp.sin(12 * x)


rng = np.random.default_rng(1)
x = jnp.asarray(rng.uniform(-1.5, 1.5, (40, 1)))
y = target(x) + 0.2 * rng.standard_normal(x.shape)
x_test = jnp.asarray(rng.uniform(-1.5, 1.5, (200, 1)))
y_test = target(x_test) + 0.2 * rng.standard_normal(x_test.shape)

# %%
# A network is a tree of its hyper-parameters
# -------------------------------------------
#
# Networks are pytrees. Their leaves are the numbers that can be varied without changing the
# structure: here three ``W_std`` and three ``b_std``. (A nonlinearity such as ``Erf`` has leaves
# too, its ``a``, ``b`` and ``c``; we hold them fixed by making the network inside of a function.)


def network(parameters):
    first, second, last = parameters["W_std"]
    b_first, b_second, b_last = parameters["b_std"]
    return stax.serial(
        stax.Dense(512, first, b_first),
        stax.Erf(),
        stax.Dense(512, second, b_second),
        stax.Erf(),
        stax.Dense(1, last, b_last),
    )


def posterior(parameters):
    net, noise = network(parameters), parameters["noise"]
    return wl.InfiniteEnsemble(net, x, y, inference="bayes", noise=noise)


start = {"W_std": [1.5, 1.5, 1.0], "b_std": [0.3, 0.3, 0.1], "noise": 0.5}
print(f"log evidence at the start: {float(posterior(start).log_marginal_likelihood()):.2f}")

# %%
# The gradient
# ------------
#
# All of them are positive: we optimise their logarithms. ``jax.jit`` compiles the evidence and its
# gradient once for all values of the hyper-parameters.

theta0, unravel = ravel_pytree(jax.tree.map(lambda value: jnp.log(jnp.asarray(value)), start))


@jax.jit
@jax.value_and_grad
def loss_and_gradient(theta):
    parameters = jax.tree.map(jnp.exp, unravel(theta))
    return -posterior(parameters).log_marginal_likelihood()


print("gradient at the start:", loss_and_gradient(theta0)[1])

# %%
# Any optimiser will do; for a handful of smooth parameters, quasi-Newton steps need few
# evaluations. The bounds keep a parameter that does not matter from running away. The evidence may
# have several maxima: we begin twice, the second time with larger weights and biases.


def maximise(start):
    theta0, _ = ravel_pytree(jax.tree.map(lambda value: jnp.log(jnp.asarray(value)), start))
    result = minimize(
        lambda theta: [np.asarray(a, np.float64) for a in loss_and_gradient(jnp.asarray(theta))],
        theta0,
        jac=True,
        method="L-BFGS-B",
        bounds=[(np.log(0.01), np.log(30.0))] * theta0.size,
        options={"maxiter": 60},
    )
    best = jax.tree.map(lambda value: float(jnp.exp(value)), unravel(jnp.asarray(result.x)))
    print(f"log evidence {-result.fun:.2f} after {result.nfev} evaluations")
    for name, values in best.items():
        print(f"  {name:6}", np.round(values, 3))
    return best


first = maximise(start)
second = maximise({"W_std": [5.0, 5.0, 2.0], "b_std": [10.0, 0.3, 0.1], "noise": 0.2})

# %%
# These are two explanations of the same data. In the first one, all biases have gone to nearly
# zero. A network of error functions without biases is an odd function, and so is our target, of
# which the optimiser was told nothing: the evidence has found the symmetry. It takes the faster
# part of the target for noise, of which it sees 0.21. The second one keeps its biases, large
# weights make it vary faster, and less is left to noise. We added 0.2. Their evidence differs by
# two units: odds of seven to one.

# %%
# Before and after
# ----------------

explanations = {"at the start": start, "symmetric": first, "rough": second}
grid = jnp.linspace(-2.0, 2.0, 161)[:, None]
with wl.plot.style():
    _, axes = pyplot.subplots(1, 3, figsize=(14, 4.4), layout="constrained", sharey=True)
    for ax, (name, parameters) in zip(axes, explanations.items(), strict=True):
        wl.plot.ensemble(posterior(parameters), grid, data=(x, y), noise=True, ax=ax)
        ax.plot(grid, target(grid), color="black", linewidth=1, alpha=0.6)
        ax.set_title(name)
    axes[0].legend(loc="lower left")
    _ = axes[0].set_ylim(-3.4, 2.6)

# %%
# New observations, which none of them has seen, have an opinion too.


def log_density(mean, std):
    return float(jax.scipy.stats.norm.logpdf(y_test, mean, std).mean())


print("mean log density of new observations")
for name, parameters in explanations.items():
    fitted = posterior(parameters)
    print(f"  {name:12} {log_density(fitted.mean(x_test), fitted.std(x_test, noise=True)):.3f}")
print(f"  {'the truth':12} {log_density(target(x_test), 0.2):.3f}")

# %%
# They prefer the rough one, against the odds. Both are far better than the start. The evidence is a
# probability and no guarantee: forty observations leave room for two explanations, and a gap of two
# units does not decide between them. Begin at several places, and look at all that you find.

# %%
# The landscape
# -------------
#
# Two of the seven, with all others where they are best. One compiled function serves all points.


@jax.jit
def evidence(W_std, noise):
    parameters = first | {"W_std": [W_std, *first["W_std"][1:]], "noise": noise}
    return posterior(parameters).log_marginal_likelihood()


W_stds, noises = np.geomspace(0.3, 10.0, 24), np.geomspace(0.1, 0.5, 20)
surface = np.array([[evidence(W_std, noise) for W_std in W_stds] for noise in noises])
with wl.plot.style():
    _, ax = pyplot.subplots(figsize=(6.4, 4.6), layout="constrained")
    below = [30, 20, 10, 5, 2, 0.5]
    levels = surface.max() - np.array(below)
    lines = ax.contour(W_stds, noises, surface, levels=levels, colors="#0072B2", linestyles="solid")
    ax.clabel(lines, fmt={level: f"-{amount}" for level, amount in zip(levels, below, strict=True)})
    ax.plot(first["W_std"][0], first["noise"], "o", color="#D55E00", markersize=9)
    ax.set(xscale="log", yscale="log", xlabel="W_std of the first layer", ylabel="noise")
    ax.set_xticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
    ax.set_yticks([0.1, 0.2, 0.3, 0.5], ["0.1", "0.2", "0.3", "0.5"])
    ax.yaxis.set_minor_formatter("")
    _ = ax.set_title("log evidence, relative to its largest value")

# %%
# Structure has no derivative. Compare depths, or nonlinearities, by their evidence; here with the
# second layer repeated. To be fair, each depth would be optimised for itself.

for depth in (1, 2, 3):
    hidden = [stax.Dense(512, first["W_std"][0], first["b_std"][0]), stax.Erf()]
    more = [stax.Dense(512, first["W_std"][1], first["b_std"][1]), stax.Erf()] * (depth - 1)
    net = stax.serial(*hidden, *more, stax.Dense(1, first["W_std"][2], first["b_std"][2]))
    fitted = wl.InfiniteEnsemble(net, x, y, inference="bayes", noise=first["noise"])
    print(f"{depth} hidden layers: {float(fitted.log_marginal_likelihood()):.2f}")
