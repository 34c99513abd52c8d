"""
Large data sets: kernels on disk
================================

A kernel of 100,000 samples has ten thousand million entries, 40 GB in float32 for one kernel, and
takes hours or days to compute. ``wl.scale`` computes it tile by tile into a store, on one machine
or many, and trains ensembles from products with it, without ever holding it. This page does so with
1,200 samples, where the dense answer is at hand for a check. It needs ``pip install
"widelimit[scale]"``.
"""

import pathlib
import tempfile

import numpy as np

import widelimit as wl

# %%
# A regression with 1,200 samples: a smooth function of four inputs, with noise.

rng = np.random.default_rng(0)


def target(x):
    return np.sin(2 * x[:, :1]) * x[:, 1:2] + 0.5 * np.cos(x[:, 2:3] + x[:, 3:4])


x = rng.standard_normal((1500, 4)).astype(np.float32)
y = (target(x) + 0.1 * rng.standard_normal((len(x), 1))).astype(np.float32)
x_train, y_train, x_test, y_test = x[:1200], y[:1200], x[1200:], y[1200:]

net = wl.models.fcn(2, num_outputs=1)

# %%
# A store
# -------
#
# ``wl.scale.gram`` makes the store: the network, the inputs and what is to be computed are in it,
# but no tile yet. Its plan says what filling takes; a few pairs of samples are timed for that.

folder = tempfile.TemporaryDirectory()
path = pathlib.Path(folder.name) / "kernels.zarr"
store = wl.scale.gram(net, x_train, get=("nngp", "ntk"), store=path, tile=300)
print(store.plan)

# %%
# Filling it
# ----------
#
# ``fill`` computes what is missing. It may be stopped, or killed, at any time: every tile is
# written as a whole or not at all, and the next ``fill`` goes on. Here we stop after four tiles of
# ten.

stops = iter([False] * 3 + [True] * 1000)
print(store.fill(progress=False, stop=lambda: next(stops)))

# %%
# Later, perhaps on another machine: the path is all that is needed. ``engine="dask"`` starts a
# worker for each processor; ``engine="dask:tcp://host:8786"`` uses a cluster that runs, and a
# ``distributed.Client`` is taken too. The bits of the result are the same.

again = wl.scale.open_store(path)
print(again.fill(progress=False))

# %%
# In a batch system there is a command for each step. Its exit code is 75 if it was stopped in time
# by the batch system, so that the job is queued again:
#
# .. code-block:: sh
#
#     widelimit gram create kernels.zarr --network net.json --inputs x.npy --get nngp,ntk
#     widelimit gram fill kernels.zarr
#     widelimit gram verify kernels.zarr
#
# Disks fail, silently at times. Every tile has a checksum; ``verify`` reads all of them, and
# ``repair`` computes again what is missing or damaged. We damage one:

tile = max((file for file in path.rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
content = bytearray(tile.read_bytes())
content[len(content) // 2] ^= 1
tile.write_bytes(content)
report = again.verify(progress=False)
print("damaged:", report.damaged, "missing:", report.missing)
print(again.repair(progress=False))

# %%
# An ensemble
# -----------
#
# A store stands where a network and its inputs would be. All that an ensemble needs is found by
# products with the kernel: means and covariances by preconditioned conjugate gradients, finite
# times by a Krylov basis.

ensemble = wl.InfiniteEnsemble(again, y_train, noise=0.1, learning_rate=0.5)
mean, std = ensemble.mean(x_test), ensemble.std(x_test[:5])
print(f"root mean square error {np.sqrt(np.mean((mean - target(x_test)) ** 2)):.3f}")

# %%
# The dense ensemble, which factorises the matrix in memory, is the check:

dense = wl.InfiniteEnsemble(net, x_train, y_train, noise=0.1, learning_rate=0.5)
print(f"means apart by {np.abs(mean - dense.mean(x_test)).max():.1e}, "
      f"standard deviations by {np.abs(std - dense.std(x_test[:5])).max():.1e}")  # fmt: skip

# %%
# Training time
# -------------
#
# All times come from one Krylov basis, so that a curve costs little more than a point.

times = np.array([0, 1, 10, 100, 1000, 10000])


def error(of):
    means = np.asarray(of.at(times).mean(x_test))
    return np.sqrt(np.mean((means - y_test) ** 2, axis=(1, 2)))


stored_error, dense_error = error(ensemble), error(dense)
drawn = wl.plot.drift(times, {"error at new points": stored_error})
drawn["error at new points"].line.axes.set_ylabel("root mean square")
print(f"apart from the dense ones by {np.abs(stored_error - dense_error).max():.1e}")

# %%
# Evidence
# --------
#
# The determinant of a matrix that is never factorised is estimated from random probes. The estimate
# brings its standard error.

posterior = wl.InfiniteEnsemble(again, y_train, inference="bayes", noise=0.1)
estimate = posterior.estimate_log_marginal_likelihood()
exact = wl.InfiniteEnsemble(net, x_train, y_train, inference="bayes", noise=0.1)
print(f"estimate: {estimate.value:.2f} +- {estimate.error:.2f}")
print(f"exact: {float(exact.log_marginal_likelihood()):.2f}")

# %%
# Which back end?
# ---------------
#
# Products read tiles from the disk, compute them anew, or hold the matrix in memory; the plan of
# the store says which is the quickest for this network and disk. All are operators, also for your
# own methods:

print(again.plan.backend)
operator = again.operator("ntk")
v = rng.standard_normal((1200, 1))
matrix = again.export(pathlib.Path(folder.name) / "ntk.npy", "ntk")
print(f"product against the exported matrix: {np.abs(operator.matmat(v) - matrix @ v).max():.1e}")
del matrix
folder.cleanup()
