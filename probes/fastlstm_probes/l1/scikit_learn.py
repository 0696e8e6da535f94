"""scikit-learn's own solvers on the problems of `objective.py`, a tag at a time in memory; sgd also over chunks.

liblinear penalises the intercept, saga and sgd do not. Their `tol` is each one's own measure.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss
from tqdm import tqdm

from fastlstm_probes.l1.chunks import MatrixRows, Rows
from fastlstm_probes.l1.objective import Problem

_PATIENCE = 5  # epochs without a better loss, as SGDClassifier's n_iter_no_change


@dataclass(frozen=True)
class Settings:
    """Of every tag's solver. name: "liblinear", "saga" or "sgd"."""

    name: str
    tol: float
    max_iter: int
    fit_intercept: bool
    seed: int

    def model(self, problem: Problem, tag: int, rows: int) -> Any:
        """The scikit-learn estimator of one tag's problem on so many rows."""
        positive, negative = float(problem.cost_positive[tag]), float(problem.cost_negative[tag])
        C = max(positive, negative)
        shared = {
            "tol": self.tol,
            "max_iter": self.max_iter,
            "random_state": self.seed,
            "class_weight": {False: negative / C, True: positive / C},
            "fit_intercept": self.fit_intercept,
        }
        if self.name == "sgd":
            return SGDClassifier(
                loss="log_loss", penalty="l1", alpha=1 / (C * rows), n_iter_no_change=_PATIENCE, **shared
            )
        return LogisticRegression(C=C, l1_ratio=1, solver=self.name, **shared)


def fit_each(
    rows: Rows, problem: Problem, settings: Settings, progress: tqdm[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points W (D + 1, K) and the iterations of every tag (K,); `max_iter` of them: not converged.

    Rows that are not in memory are for sgd alone.

    Raises:
        ValueError: a tag that all rows have, or none.
    """
    every = torch.arange(problem.tags, device=problem.device)
    targets = problem.targets(slice(None), every).cpu().numpy()
    if any(column.all() or not column.any() for column in targets.T):
        raise ValueError(f"y: expected both classes in every column for {settings.name}, got one class")
    models = [settings.model(problem, tag, len(targets)) for tag in range(problem.tags)]
    if isinstance(rows, MatrixRows):
        X = rows.X.cpu().numpy()
        iterations = np.zeros(problem.tags, dtype=np.int64)
        for tag, model in enumerate(models):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # said for all tags by the estimator
                model.fit(X, targets[:, tag])
            iterations[tag] = np.max(model.n_iter_)
            progress.update()
    else:
        iterations = _descend(rows, targets, models, settings, progress)
    W = np.zeros((rows.columns + 1, problem.tags))
    for tag, model in enumerate(models):
        W[:-1, tag], W[-1, tag] = model.coef_[0], np.ravel(model.intercept_)[0]
    return W, iterations


def _descend(
    rows: Rows, targets: NDArray[np.bool_], models: list[Any], settings: Settings, progress: tqdm[Any]
) -> NDArray[np.int64]:
    """Epochs of every model over the chunks, in order, until its objective no longer falls by `tol` a row (5 epochs).

    That is SGDClassifier's own rule, with each chunk's loss taken before the model learns from it and the penalty
    after the last. Rows are shuffled within a chunk alone.
    """
    for model in models:
        model.set_params(random_state=np.random.RandomState(settings.seed))  # a number would be the same order again
    epochs = np.zeros(len(models), dtype=np.int64)
    best, waited = np.full(len(models), np.inf), np.zeros(len(models), dtype=np.int64)
    for epoch in range(1, settings.max_iter + 1):
        left = np.flatnonzero(waited < _PATIENCE)
        if not len(left):
            break
        loss = np.zeros(len(models))
        for first, chunk in rows.chunks():
            X, y = chunk.cpu().numpy(), targets[first : first + len(chunk)]
            for tag in left:
                if epoch > 1 or first > 0:
                    share = models[tag].predict_proba(X)[:, 1]
                    loss[tag] += log_loss(y[:, tag], share, normalize=False, labels=[False, True])
                models[tag].partial_fit(X, y[:, tag], classes=[False, True])
        epochs[left] = epoch
        for tag in left:
            loss[tag] += models[tag].alpha * np.abs(models[tag].coef_).sum() * len(targets)
        worse = loss > best - settings.tol * len(targets)
        waited[left] = np.where(worse[left] & (epoch > 1), waited[left] + 1, 0)
        if epoch > 1:  # the first chunk of the first epoch has no loss
            best[left] = np.minimum(best[left], loss[left])
        progress.n = int((waited >= _PATIENCE).sum())
        progress.set_postfix_str(f"{epoch} epochs")
    return epochs
