"""
Classification with honest probabilities
========================================

A classifier that says 0.9 should be right nine times out of ten. Softmax outputs of trained
networks rarely are: they are scores, squeezed into the unit interval. An infinite ensemble has real
uncertainty to begin with, a Gaussian over the outputs of all networks that fit the data. This page
turns it into probabilities of classes, and checks them.
"""

import jax
import numpy as np
from matplotlib import pyplot
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from widelimit.estimators import NNGPClassifier, NTKClassifier

import widelimit as wl

# %%
# A problem that cannot be solved
# -------------------------------
#
# On clean digits everybody is right and confident, and calibration says little. We add as much
# noise to the pixels as there is signal: three out of four can still be read. 400 images for
# training, 1,000 for testing.

x, labels = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
x = (x - x.mean()) / x.std() + rng.standard_normal(x.shape)
order = rng.permutation(len(x))
train, test = order[:400], order[400:1400]

with wl.plot.style():
    _, axes = pyplot.subplots(1, 8, figsize=(11, 1.7), layout="constrained")
    for ax, k in zip(axes, train, strict=False):
        ax.imshow(x[k].reshape(8, 8), cmap="gray")
        ax.set(xticks=[], yticks=[], title=str(labels[k]))

# %%
# From outputs to probabilities
# -----------------------------
#
# An infinite network regresses on the labels, coded as -1 and 1, with one output for each class.
# The posterior says which outputs are plausible for a new image. The probability of a class is the
# probability that its output, observed with noise, is the largest one. By brute force: draw
# networks, add noise, and count.

net = wl.models.fcn(3, num_outputs=10)
codes = 2.0 * np.eye(10)[labels] - 1.0
centre, noise = codes[train].mean(0), 0.3
posterior = wl.InfiniteEnsemble(
    net, x[train], codes[train] - centre, inference="bayes", noise=noise
)
draws = posterior.sample(jax.random.PRNGKey(0), x[test[:5]], 4000) + centre
draws = draws + noise * rng.standard_normal(draws.shape)
frequencies = np.stack([np.mean(draws.argmax(-1) == label, axis=0) for label in range(10)], -1)
for k, image in enumerate(test[:5]):
    best = np.argsort(-frequencies[k])[:3]
    guesses = ", ".join(f"{label}: {frequencies[k, label]:.2f}" for label in best)
    print(f"a {labels[image]}: {guesses}")

# %%
# ``widelimit.estimators`` has this as a classifier of scikit-learn. It computes the probabilities
# by quadrature instead of counting, chooses noise and scale by the evidence, and then corrects one
# number: the temperature, by which all standard deviations are multiplied. Codes of -1 and 1 are no
# Gaussian observations, so that the spread can be too large or too small by a factor. It is chosen
# so that training images, each predicted without itself, get the largest likelihood; that is a
# closed form too and costs nothing in data.

classifier = NNGPClassifier(depth=3).fit(x[train], labels[train])
print(f"temperature {classifier.temperature_:.2f}, noise {classifier.noise_:.2f}")

# %%
# Reliability
# -----------
#
# Group the test images by the confidence of the classifier, and compare with the accuracy in each
# group: on the diagonal it says what it knows. Beside it, the same posterior without the
# temperature, an ensemble trained by gradient descent, and logistic regression.

uncorrected = NNGPClassifier(depth=3).fit(x[train], labels[train])
uncorrected.temperature_ = 1.0
models = {
    "posterior": classifier,
    "posterior, temperature 1": uncorrected,
    "trained ensemble": NTKClassifier(depth=3).fit(x[train], labels[train]),
    "logistic regression": LogisticRegression(max_iter=2000).fit(x[train], labels[train]),
}
probabilities = {name: model.predict_proba(x[test]) for name, model in models.items()}

with wl.plot.style():
    _, axes = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    looks = {"posterior": ("#0072B2", "o", 0), "posterior, temperature 1": ("#E69F00", "s", 0)}
    looks |= {"trained ensemble": ("#009E73", "^", 1), "logistic regression": ("#D55E00", "v", 1)}
    for name, (color, marker, side) in looks.items():
        wl.plot.reliability(
            probabilities[name],
            labels[test],
            bins=10,
            least=10,
            label=name,
            color=color,
            marker=marker,
            ax=axes[side],
        )
        axes[side].legend(loc="upper left", markerscale=0.6)
    axes[1].set_ylabel("")

# %%
# Scores
# ------
#
# The negative log likelihood punishes both mistakes and false confidence; the calibration error is
# the mean distance from the diagonal, in which noise of about 0.02 is left with this number of
# images.

print(f"{'':26}accuracy  confidence  neg. log likelihood  calibration error")
for name, p in probabilities.items():
    accuracy, confidence = np.mean(p.argmax(1) == labels[test]), p.max(1).mean()
    likelihood = -np.mean(np.log(p[np.arange(len(test)), labels[test]]))
    mean, correct, count = wl.plot.reliability_bins(p, labels[test], bins=10)
    error = np.nansum(count * np.abs(mean - correct)) / count.sum()
    print(f"{name:26}{accuracy:8.3f}{confidence:12.3f}{likelihood:21.3f}{error:19.3f}")

# %%
# Before the correction the posterior is too modest: it is right more often than it says. Logistic
# regression is too sure of itself. With its temperature, the posterior is near the diagonal.
#
# What probabilities are for
# --------------------------
#
# Whoever may say "I do not know" is right more often. Of the images sorted by confidence:

p = probabilities["posterior"]
is_correct, rank = p.argmax(1) == labels[test], np.argsort(-p.max(1))
for share in (0.25, 0.5, 0.75, 1.0):
    chosen = rank[: int(share * len(rank))]
    print(f"the surest {share:4.0%}: accuracy {is_correct[chosen].mean():.3f}, "
          f"confidence {p[chosen].max(1).mean():.3f}")  # fmt: skip

# %%
# A warning: calibration is a statement about images like those of the training set. What does the
# classifier say of images without a digit?

nothing = rng.standard_normal((1000, 64)) * x.std() + x.mean()
shuffled = rng.permuted(x[test], axis=1)
others = {"digits": x[test], "noise alone": nothing, "shuffled pixels": shuffled}
for name, images in others.items():
    spread = np.asarray(posterior.std(images))[:, 0].mean()
    confidence = classifier.predict_proba(images).max(1).mean()
    print(f"{name:16} mean confidence {confidence:.2f}, standard deviation of outputs {spread:.2f}")

# %%
# A tenth would be honest, and it says more than 0.4. The standard deviation of the outputs, which
# knows nothing of classes, is larger there: it is the better alarm.
