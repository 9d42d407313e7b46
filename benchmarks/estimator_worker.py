"""A process that fits one library's MLPClassifier when told to; ``benchmarks.estimators`` starts and asks it.

scikit-learn's never imports gpumlp: it runs as its users have it. Each line on standard input is a request, and
each line on standard output an answer, both JSON; an empty request asks for the kernel of its BLAS.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any


def main(library: str) -> int:
    """Answer until the input ends."""
    extra: dict[str, Any] = {}
    if library == "gpumlp":
        from gpumlp.sklearn import MLPClassifier  # before NumPy: gpumlp chooses the kernel of its BLAS

        extra = {"device": "cpu"}
    else:
        from sklearn.neural_network import MLPClassifier
    import numpy as np
    import threadpoolctl

    warnings.simplefilter("ignore")  # that an epoch more might have helped
    for line in sys.stdin:
        request = json.loads(line)
        blas = [
            {"kernel": pool.get("architecture"), "threads": pool["num_threads"]}
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas" and "numpy.libs" in pool["filepath"]
        ]
        if not request:
            print(json.dumps({"blas": blas}), flush=True)
            continue
        with np.load(request["file"]) as arrays:
            X, y, X_test, y_test = (arrays[name] for name in ("X", "y", "X_test", "y_test"))
        X, X_test = X.astype(request["dtype"]), X_test.astype(request["dtype"])
        model = MLPClassifier(random_state=request["seed"], **request["parameters"], **extra)
        time.sleep(request["rest"])
        start = time.perf_counter()
        model.fit(X, y)
        fitted = time.perf_counter()
        found = model.predict(X_test)
        seconds = time.perf_counter() - fitted
        answer = {
            "seconds": fitted - start,
            "predict_seconds": seconds,
            "accuracy": float((found == y_test).mean()),
            "epochs": int(model.n_iter_),
            "loss": float(model.loss_),
            "blas": blas,
        }
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
