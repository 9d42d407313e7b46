"""A scikit-learn pipeline with grid search; the network is trained on a GPU where there is one.

pip install ".[sklearn]" && python examples/scikit_learn_pipeline.py
"""

import sys

from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpumlp.sklearn import MLPClassifier  # the one import that differs from scikit-learn's own network

ENOUGH = 0.93  # of the test samples

x, y = load_wine(return_X_y=True, as_frame=False)
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=0)

pipeline = make_pipeline(
    StandardScaler(),
    MLPClassifier(solver="adam", learning_rate_init=0.01, max_iter=400, random_state=0, device="auto"),
)
grid = {"mlpclassifier__hidden_layer_sizes": [(8,), (32,)], "mlpclassifier__alpha": [1e-4, 1e-1]}
search = GridSearchCV(pipeline, grid, cv=3).fit(x_train, y_train)

for settings, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
    words = ", ".join(f"{name.partition('__')[2]} {value}" for name, value in settings.items())
    print(f"{words}: {score:.4f} in cross-validation")
accuracy = search.score(x_test, y_test)
print(f"test accuracy of the best: {accuracy:.4f}")
sys.exit(None if accuracy >= ENOUGH else f"expected an accuracy of {ENOUGH} or more")
