"""Probes and matchings are those of scikit-learn and SciPy: pytest -m peers tests/peers"""

import numpy as np
import pytest
import torch

from jobs.ml.assignment import best_assignment
from jobs.ml.logistic import fit

pytestmark = pytest.mark.peers


def test_a_probe_is_the_logistic_regression_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    torch.manual_seed(0)
    for dimensions in (1, 5, 64):
        x = torch.randn(500, dimensions).double() * 3 + 1
        y = torch.rand(500) < torch.sigmoid(x[:, 0] - 1)
        scaler = preprocessing.StandardScaler().fit(x.numpy())
        theirs = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
        theirs.fit(scaler.transform(x.numpy()), y.numpy())
        ours = fit(x, y)
        assert np.allclose(ours.weight.numpy() * scaler.scale_, theirs.coef_[0], atol=1e-4)
        assert (ours.says(x).numpy() == theirs.predict(scaler.transform(x.numpy()))).all()


@pytest.mark.parametrize("shape", [(200, 200), (300, 500)])
def test_a_matching_is_as_good_as_that_of_scipy(shape) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    gain = np.random.default_rng(0).random(shape)
    rows, columns = optimize.linear_sum_assignment(gain, maximize=True)
    found = best_assignment(gain)
    assert len(set(found.tolist())) == shape[0]
    assert gain[range(shape[0]), found].sum() == pytest.approx(gain[rows, columns].sum())
