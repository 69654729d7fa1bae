"""What simpler methods reach: the majority answer, and a linear model on TF-IDF features."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from finesmith.errors import DataError
from finesmith.evaluate.metrics import HIGHER_IS_BETTER, METRICS, measure

if TYPE_CHECKING:
    from finesmith.evaluate.metrics import Array, Floats, Kind

Texts = tuple[Sequence[str], Sequence[str] | None]

# From most to least regularised; beyond 20 classes each value costs too much time to try them all.
INVERSE_PENALTIES = (1.0, 3.0, 10.0)
INVERSE_PENALTIES_MANY = (3.0, 10.0)
RIDGE_PENALTIES = (3.0, 1.0, 0.3)
DEFAULT_INVERSE_PENALTY = 3.0
DEFAULT_RIDGE_PENALTY = 1.0
MAX_ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Baseline:
    """A simple method's predictions by split, the seconds it took to make them all, and figures for the report."""

    name: str
    predictions: Mapping[str, Array]
    seconds: float
    details: Mapping[str, Any]


def majority(
    train_targets: Array, n: int, kind: Kind, classes: int | None = None, *, metric: str | None = None
) -> Floats:
    """Predict for `n` rows what the training targets say without any text.

    "single": the class frequencies, [n, classes]; "multi": each label's frequency, [n, C]; "number": the constant that
    suits `metric`, [n]: the mean for rmse and r2, which square the errors, else the median.

    Raises ValueError when `kind` has no such `metric`.
    """
    import numpy as np

    _check_metric(kind, metric)
    if kind == "number":
        return np.full(n, float(np.mean(train_targets) if metric in ("rmse", "r2") else np.median(train_targets)))
    if kind == "multi":
        frequencies = np.asarray(train_targets, dtype=np.float64).mean(axis=0)
    else:
        frequencies = np.bincount(train_targets, minlength=classes or 0) / len(train_targets)
    return np.tile(frequencies, (n, 1))


def tfidf_linear(
    train: Texts,
    train_targets: Array,
    splits: Mapping[str, Texts],
    kind: Kind,
    *,
    classes: int | None = None,
    validation: tuple[Texts, Array] | None = None,
    seed: int = 0,
    metric: str | None = None,
    balanced: bool = False,
) -> Baseline:
    """Fit a linear model on TF-IDF of words, word pairs and character n-grams; predict every split.

    Each of `train`, `splits` and `validation` is (texts, pairs or None). Logistic regression for classes (one against
    the rest for more than two, scaled to sum 1) and labels, ridge for numbers (kept within the training targets'
    range). The penalty is chosen on `validation` by `metric` (default: accuracy, micro-F1 or RMSE), else fixed.
    `balanced` weighs rows inversely to how frequent their answer is, for classes and labels. Probabilities have
    `classes` columns, with 0 for a class that the training rows lack. Same input and seed, same predictions.

    Raises DataError when the training texts hold no words at all, ValueError when `kind` has no such `metric` or
    numbers are to be balanced.
    """
    _check_metric(kind, metric)
    if balanced and kind == "number":
        raise ValueError("numbers have no classes to balance")
    started = time.perf_counter()
    features, encode = _fit_features(train)
    width = classes or (train_targets.shape[1] if kind == "multi" else None)
    fit: Fit = _fit_ridge
    if kind != "number":
        fit = partial(_fit_labels if kind == "multi" else _fit_classes, balanced=balanced)
    held = None if validation is None else encode(validation[0])
    many = width is not None and width > 20
    grid: tuple[float, ...] = (
        RIDGE_PENALTIES if kind == "number" else INVERSE_PENALTIES_MANY if many else INVERSE_PENALTIES
    )
    if held is None:
        grid = (DEFAULT_RIDGE_PENALTY if kind == "number" else DEFAULT_INVERSE_PENALTY,)
    metric = metric or {"single": "accuracy", "multi": "micro_f1", "number": "rmse"}[kind]
    tried: list[dict[str, Any]] = []
    best: tuple[float, Predictor] | None = None
    for penalty in grid:
        predict, converged = fit(features, train_targets, penalty, width, seed)
        tried.append({"penalty": penalty, "converged": converged})
        quality = 0.0
        if validation is not None:
            value = measure(kind, validation[1], predict(held))[metric]
            tried[-1][metric] = value
            quality = (value if HIGHER_IS_BETTER[metric] else -value) if value is not None else -math.inf
        # Ties keep the stronger penalty.
        if best is None or quality > best[0]:
            best, chosen = (quality, predict), penalty
    assert best is not None
    predictions = {name: best[1](encode(texts)) for name, texts in splits.items()}
    return Baseline(
        name="TF-IDF + ridge regression" if kind == "number" else "TF-IDF + logistic regression",
        predictions=predictions,
        seconds=time.perf_counter() - started,
        details={"features": int(features.shape[1]), "penalty": chosen, "tried": tried, "balanced": balanced},
    )


# Sparse matrices and fitted models come from libraries without types.
Predictor = Callable[[Any], "Floats"]
Fit = Callable[[Any, "Array", float, int | None, int], tuple[Predictor, bool]]


def _check_metric(kind: Kind, metric: str | None) -> None:
    if metric is not None and metric not in METRICS[kind]:
        raise ValueError(f"no metric {metric!r} for such predictions; choose one of {', '.join(METRICS[kind])}")


def word_vectors(texts: Sequence[str]) -> Callable[[Sequence[str]], Any]:
    """Count the words of training texts; return what makes a sparse row of unit length (or zero) of any text, [N, D].

    Raises DataError when the texts hold no words.
    """
    counter = _word_counter(1)
    try:
        counter.fit(texts)
    except ValueError as error:
        raise DataError(f"the {len(texts):,} training texts hold no words to count: check the columns") from error
    return lambda others: counter.transform(others)


def _word_counter(common: int) -> Any:
    """Return what counts the words and pairs of words that `common` texts have, weighted."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        token_pattern=r"(?u)\b\w+\b|[!?]", ngram_range=(1, 2), sublinear_tf=True, min_df=common, strip_accents="unicode"
    )


def _fit_features(train: Texts) -> tuple[Any, Callable[[Texts], Any]]:
    """Return the training rows' sparse features and the function that encodes other rows alike.

    A pair is encoded with the vocabulary of both columns: features of the first text, of the second, their products
    (terms in common, weighted) and the cosine between them.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, pairs = train
    corpus = [*texts, *(pairs or ())]
    common = 2 if len(corpus) >= 1000 else 1
    words = _word_counter(common)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=common)
    try:
        fitted = [words.fit_transform(corpus), characters.fit_transform(corpus)]
    except ValueError as error:
        raise DataError(
            f"the {len(texts):,} training texts hold no words to learn from: check the text column"
        ) from error

    def join(first: list[Any], second: list[Any] | None) -> Any:
        if second is None:
            return hstack(first, format="csr")
        products = [a.multiply(b) for a, b in zip(first, second, strict=True)]
        cosines = [csr_matrix(product.sum(axis=1)) for product in products]
        return hstack([*first, *second, *products, *cosines], format="csr")

    def encode(rows: Texts) -> Any:
        columns = [column for column in rows if column is not None]
        encoded = [[v.transform(column) for v in (words, characters)] for column in columns]
        return join(encoded[0], encoded[1] if len(encoded) == 2 else None)

    if pairs is None:
        return join(fitted, None), encode
    count = len(texts)
    return join([block[:count] for block in fitted], [block[count:] for block in fitted]), encode


def _fit_classes(
    features: Any, targets: Array, penalty: float, width: int | None, seed: int, *, balanced: bool
) -> tuple[Predictor, bool]:
    """Fit one model for two classes, else one for each class against the rest."""
    import numpy as np

    present = [int(c) for c in np.unique(targets)]
    columns = width or present[-1] + 1
    if len(present) == 1:
        return lambda rows: np.tile(np.eye(columns)[present[0]], (rows.shape[0], 1)), True
    asked = present[1:] if len(present) == 2 else present
    scorers = [_fit_yes_no(features, targets == c, penalty, seed, balanced) for c in asked]

    def predict(rows: Any) -> Floats:
        scores = np.column_stack([score(rows) for score, _ in scorers])
        if len(present) == 2:
            scores = np.column_stack([1.0 - scores[:, 0], scores[:, 0]])
        result = np.zeros((rows.shape[0], columns))
        result[:, present] = scores / scores.sum(axis=1, keepdims=True)
        return result

    return predict, all(converged for _, converged in scorers)


def _fit_labels(
    features: Any, targets: Array, penalty: float, _: int | None, seed: int, *, balanced: bool
) -> tuple[Predictor, bool]:
    """Fit one model for each label; a label that never or always applies is predicted as such."""
    import numpy as np

    answers = np.asarray(targets, dtype=bool)
    scorers = [_fit_yes_no(features, column, penalty, seed, balanced) for column in answers.T]
    return lambda rows: np.column_stack([score(rows) for score, _ in scorers]), all(done for _, done in scorers)


def _fit_yes_no(features: Any, answers: Array, penalty: float, seed: int, balanced: bool) -> tuple[Predictor, bool]:
    """Fit a yes/no logistic regression; return the function from features to P(yes) and whether it converged."""
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if answers.all() or not answers.any():
        return lambda rows: np.full(rows.shape[0], float(answers[0])), True
    # The dual coordinate solver is the quickest for sparse rows; its order of visits is what the seed fixes.
    model = LogisticRegression(
        C=penalty,
        solver="liblinear",
        dual=True,
        max_iter=MAX_ITERATIONS,
        random_state=seed,
        class_weight="balanced" if balanced else None,
    )
    with warnings.catch_warnings():
        # Told through `converged` instead.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, answers)
    return lambda rows: model.predict_proba(rows)[:, 1], bool(model.n_iter_.max() < MAX_ITERATIONS)


def _fit_ridge(features: Any, targets: Array, penalty: float, _: int | None, seed: int) -> tuple[Predictor, bool]:
    import numpy as np
    from sklearn.linear_model import Ridge

    low, high = float(np.min(targets)), float(np.max(targets))
    model = Ridge(alpha=penalty, solver="sparse_cg", max_iter=MAX_ITERATIONS, tol=1e-5, random_state=seed)
    model.fit(features, np.asarray(targets, dtype=np.float64))
    steps = model.n_iter_
    converged = steps is None or bool(np.max(steps) < MAX_ITERATIONS)
    return lambda rows: np.clip(model.predict(rows), low, high), converged
