"""
Images: kernels of convolutional networks
=========================================

A convolutional kernel compares two images at every pair of positions: that is what makes it costly,
and which pairs are needed depends on what the network does at its end. This page builds three
infinite networks for the same images, asks what their kernels will cost, computes Gram matrices
within a budget of memory, and trains an ensemble with each.
"""

import pathlib
import tempfile

import numpy as np
from sklearn.datasets import load_digits

import widelimit as wl

# %%
# Images are arrays ``[n, height, width, channels]``. A kernel sees inputs as they are, uncentred:
# so we give them mean 0 and variance 1. These are the handwritten digits of scikit-learn, 8 x 8
# pixels.

digits = load_digits()
images = digits.images[..., None].astype(np.float32)
images = (images - images.mean()) / images.std()
order = np.random.default_rng(0).permutation(len(images))
train, test = order[:200], order[200:500]

# %%
# Three networks
# --------------
#
# ``wl.models`` has the networks of the literature with their hyper-parameters. The first one does
# not know that pixels have neighbours. The second one reads all positions at its end with weights
# of their own (``Flatten``): its kernel needs only covariances of equal positions. The third one
# averages over positions (``GlobalAvgPool``), so that it does not matter where in the image
# something is: its kernel needs the covariances of all pairs of positions.

networks = {
    "fully connected": wl.models.fcn(3, num_outputs=10),
    "CNN, Flatten": wl.models.cnn(3, "flatten", num_outputs=10),
    "CNN, pooling": wl.models.cnn(3, "gap", num_outputs=10),
}

# %%
# What will it cost?
# ------------------
#
# ``wl.plan`` answers before anything is computed: a row for each layer, with the offsets between
# positions that are stored, entries for each pair of images, memory and operations.

print(wl.plan(networks["CNN, Flatten"], images.shape))

# %%
print(wl.plan(networks["CNN, pooling"], images.shape))

# %%
# The second table has 225 offsets where the first one has 1: all shifts of an 8 x 8 image against
# another one. Each network also says which engine will run it, and why.

print(wl.choose_engine(networks["CNN, pooling"], images.shape))

# %%
# Gram matrices
# -------------
#
# For a few images call ``net.kernel_fn(x1, x2, get)``. For many there is ``wl.gram``: it computes
# the matrix in tiles which fit into ``memory``, on all cores, and only once what is symmetric. One
# call returns both kernels.

grams = {
    name: wl.gram(net, images[train], get=("nngp", "ntk"), memory="500MiB", progress=False)
    for name, net in networks.items()
}
tangent = grams["CNN, Flatten"].ntk
print(tangent.shape, tangent.dtype, "symmetric:", bool((tangent == tangent.T).all()))

# %%
# Its picture, with the images in the order of their classes and all variances made 1. Bright blocks
# along the diagonal say that the network finds images of one class similar: zeros and sixes most of
# all. Ones come in two kinds. No eigenvalue is near the rounding of float32, which a dotted line
# would mark: this kernel needs no ridge.

size = np.sqrt(np.diagonal(tangent))
drawn = wl.plot.kernel(tangent / size / size[:, None], labels=digits.target[train])

# %%
# The eigenvalues decide what is learnt fast: the time for a direction is inverse to its eigenvalue.
# All three spectra begin with one large eigenvalue, that of a nearly constant function, and pooling
# makes all others small beside it.

drawn = wl.plot.spectrum({name: gram.ntk for name, gram in grams.items()})

# %%
# A Gram matrix that is too large for memory goes to disk, tile by tile, with ``out``. The file
# appears under its name only once it is whole.

with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "ntk.npy"
    net = networks["CNN, Flatten"]
    on_disk = wl.gram(net, images[:500], get="ntk", out=path, progress=False)
    print(
        f"{type(on_disk).__name__} {on_disk.shape}, {path.stat().st_size / 2**20:.1f} MiB on disk"
    )
    del on_disk

# %%
# Training
# --------
#
# Classes are regressed on as centred one-hot vectors. The ensemble computes the kernels itself, in
# tiles too (``memory=``). Without ``at`` it is the ensemble at infinite time.

y = np.eye(10, dtype=np.float32)[digits.target] - 0.1


def accuracy(ensemble):
    predicted = np.argmax(ensemble.mean(images[test]), axis=1)
    return float(np.mean(predicted == digits.target[test]))


for name, net in networks.items():
    print(f"{name:16} {accuracy(wl.InfiniteEnsemble(net, images[train], y[train])):.1%}")

# %%
# The standard error of an accuracy of 95 % on 300 images is 1.3 %: for a comparison of networks
# that deserves the name, take several splits (``make demo`` does, for these networks and a residual
# one). What an ensemble needs beside the tiles is known before it is made:

plan = wl.plan(networks["CNN, pooling"], images.shape)
print(f"10,000 training images: {plan.ensemble_bytes(10_000) / 2**30:.1f} GiB")

# %%
# Beyond that, see *Large data sets*. For 32 x 32 images ``wl.models.myrtle(5)`` is a network with
# pools in between; each pool halves the positions, and the cost of what follows by 16.
