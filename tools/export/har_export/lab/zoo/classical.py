"""The honest baselines on hand features: a random forest and a logistic regression, fitted by scikit-learn."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from agent.records import Float32Array, Int64Array
from har_export.lab.graph import Graph
from har_export.lab.zoo.features import NAMES

_BRANCH, _LEAF = "BRANCH_LEQ", "LEAF"


def fit_forest(features: Float32Array, label: Int64Array, classes: int, seed: int, trees: int, leaf: int) -> bytes:
    """Fit a random forest and return it as an ONNX file: `features` (batch, F) -> `logits`, shares of the trees.

    `leaf`: fewest windows in a leaf.
    """
    forest = RandomForestClassifier(trees, min_samples_leaf=leaf, random_state=seed, n_jobs=1).fit(features, label)
    nodes: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "featureids", "values", "modes")}
    nodes |= {"truenodeids": [], "falsenodeids": []}
    leaves: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for number, fitted in enumerate(forest.estimators_):
        tree = fitted.tree_
        ends = tree.children_left < 0
        nodes["treeids"] += [number] * tree.node_count
        nodes["nodeids"] += range(tree.node_count)
        nodes["featureids"] += np.maximum(tree.feature, 0).tolist()
        nodes["values"] += np.where(ends, 0, tree.threshold).tolist()
        nodes["modes"] += np.where(ends, _LEAF, _BRANCH).tolist()
        nodes["truenodeids"] += np.maximum(tree.children_left, 0).tolist()
        nodes["falsenodeids"] += np.maximum(tree.children_right, 0).tolist()
        share = tree.value[:, 0] / tree.value[:, 0].sum(axis=1, keepdims=True)
        at, column = np.nonzero(ends[:, None] & (share > 0))
        leaves["treeids"] += [number] * len(at)
        leaves["nodeids"] += at.tolist()
        leaves["ids"] += forest.classes_[column].tolist()
        leaves["weights"] += (share[at, column] / trees).tolist()
    graph = Graph()
    _, scores = graph.outputs(
        2, "TreeEnsembleClassifier", "features", domain="ai.onnx.ml", classlabels_int64s=list(range(classes)),
        **{f"nodes_{key}": value for key, value in nodes.items()},
        **{f"class_{key}": value for key, value in leaves.items()},
    )  # fmt: skip
    return graph.serialise("features", (len(NAMES),), scores, classes)


def fit_logistic(features: Float32Array, label: Int64Array, classes: int, seed: int, strength: float) -> bytes:
    """Fit a logistic regression on standardised features and return it as an ONNX file, as `fit_forest`.

    `strength`: the inverse of the penalty, scikit-learn's C. The standardisation is folded into the weights.
    """
    mean, sd = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    fitted = LogisticRegression(C=strength, max_iter=2000, random_state=seed).fit((features - mean) / sd, label)
    weight, bias = np.zeros((classes, len(NAMES))), np.full(classes, -1e3)
    weight[fitted.classes_] = fitted.coef_ / sd
    bias[fitted.classes_] = fitted.intercept_ - (fitted.coef_ / sd) @ mean
    graph = Graph()
    constants = [graph.constant(x.astype(np.float32)) for x in (weight, bias)]
    return graph.serialise("features", (len(NAMES),), graph.op("Gemm", "features", *constants, transB=1), classes)


KINDS: dict[str, Callable[..., bytes]] = {"forest": fit_forest, "logistic": fit_logistic}
"""What a config's `kind` may name, beside the networks of `modules`."""
