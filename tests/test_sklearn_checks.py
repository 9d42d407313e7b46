"""scikit-learn's own checks of what an estimator must do."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install '.[sklearn]'")

from sklearn.utils.estimator_checks import parametrize_with_checks

from gpumlp.sklearn import MLPClassifier, MLPRegressor

# Mini-batches of weighted samples are other batches than those of repeated samples; and float32 rounds.
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": "mini-batches cannot meet it"}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [MLPClassifier(device="cpu"), MLPRegressor(device="cpu")],
    expected_failed_checks=lambda estimator: EXPECTED,
    xfail_strict=True,
)
def test_a_check(estimator: Any, check: Any) -> None:
    check(estimator)
