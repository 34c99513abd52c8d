"""The kernel of GPyTorch beside our own kernels and posteriors, and its derivatives."""

import numpy as np
import pytest

import widelimit as wl
from tests.estimators.problems import regression
from tests.tolerance import assert_close
from widelimit.estimators import NNGPRegressor

torch = pytest.importorskip("torch")
gpytorch = pytest.importorskip("gpytorch")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def kernel(*args, **settings):
    from widelimit.estimators import GPyTorchKernel

    return GPyTorchKernel(*args, **settings)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["nngp", "ntk"])
def test_values_are_those_of_the_network(name):
    x, _, test = regression()
    ours = kernel(kernel=name, depth=1)
    expected = wl.models.fcn(1).kernel_fn(x, test, name)
    x, test = torch.tensor(x), torch.tensor(test)
    assert_close(ours(x, test).to_dense().detach().numpy(), expected)
    assert_close(kernel(wl.models.fcn(1), name)(x, test).to_dense().detach().numpy(), expected)
    batch = ours(x.expand(2, 30, 3), test).to_dense().detach().numpy()
    assert_close(batch, np.stack([expected, expected]))
    diagonal = ours(x, diag=True).detach().numpy()
    assert_close(diagonal, ours(x).to_dense().diagonal().detach().numpy())


def test_derivatives_are_those_of_differences():
    x, _, test = regression(samples=3)
    ours = kernel(depth=1, activation="erf", ard_num_dims=3)
    names, parameters = zip(*ours.named_parameters(), strict=True)
    assert sorted(names) == ["raw_W_std", "raw_b_std", "raw_lengthscale"]

    def value(x1, x2, *raw):
        return torch.func.functional_call(ours, dict(zip(names, raw, strict=True)), (x1, x2))

    inputs = (torch.tensor(x[None]), torch.tensor(test[None, :2]), *parameters)
    inputs = [i.detach().clone().requires_grad_() for i in inputs]
    forward = ours.forward
    ours.__class__ = type("Plain", (type(ours),), {"__call__": lambda self, *a: forward(*a)})
    assert torch.autograd.gradcheck(value, inputs)


def test_posteriors_are_those_of_our_estimator():
    x, y, test = regression(outputs=1)
    ours = NNGPRegressor(
        depth=1, noise=0.3, optimizer=None, normalize_X=False, normalize_y=False
    ).fit(x, y[:, 0])

    class Model(gpytorch.models.ExactGP):
        def __init__(self, *args):
            super().__init__(*args)
            self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel(depth=1)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(x), self.covar_module(x)
            )

    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.09
    model = Model(torch.tensor(x), torch.tensor(y[:, 0]), likelihood)
    loss = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    evidence = loss(model(*model.train_inputs), model.train_targets)
    assert_close(30 * evidence.item(), ours.log_marginal_likelihood_value_)
    evidence.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    mean, std = ours.predict(test, return_std=True)
    found = model(torch.tensor(test))
    assert_close(found.mean.detach().numpy(), mean, rtol=1e-9)
    assert_close(found.variance.detach().numpy(), std**2, rtol=1e-8)


def test_values_are_set_and_kept_positive():
    ours = kernel(W_std=1.7, b_std=0.2)
    assert_close([ours.W_std.item(), ours.b_std.item()], [1.7, 0.2])
    ours.b_std = 0.5
    assert_close(ours.b_std.item(), 0.5)
    assert not ours.is_stationary


def test_batches_of_hyperparameters_are_refused():
    with pytest.raises(ValueError, match="expected no batch_shape"):
        kernel(batch_shape=torch.Size([2]))
