"""L1-penalised logistic regression of every tag against the rest, as a scikit-learn estimator."""

from __future__ import annotations

import warnings
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_array, check_is_fitted, check_random_state, validate_data
from tqdm import tqdm

from fastlstm_probes.l1.chunks import MEMORY_LIMIT, MatrixRows, Rows, StoreRows
from fastlstm_probes.l1.objective import Problem, dual, primal
from fastlstm_probes.l1.passes import LocalPasses, Passes, strongest_penalty
from fastlstm_probes.l1.scikit_learn import Settings, fit_each
from fastlstm_probes.l1.solver import START_ROWS, solve

Solver = Literal["joint", "liblinear", "saga", "sgd"]
_SOLVERS = ("joint", "liblinear", "saga", "sgd")


class L1LogisticOvR(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """One L1-penalised logistic regression per tag, all fitted at once, each with a certificate of its optimum.

    The problem of each tag is in `objective.py`: liblinear's, or saga's with `penalise_intercept=False`.

    Args:
        C: inverse strength of the penalty, larger: more weights; one for all tags, or (K,), of each.
        alpha_fraction: the strength instead as a share (0..1] of that at which the last weight becomes zero, for each
            tag its own: C = 1 / (alpha_fraction * alpha_max). None: use C.
        tol: a tag is done once its relative duality gap is at most this: its objective is then at most 1 / (1 - tol)
            times the least. For scikit-learn's solvers their own `tol`.
        max_iter: passes over the rows at most, or scikit-learn's iterations.
        fit_intercept, penalise_intercept: see above.
        class_weight: None, "balanced": n / (2 * rows of the class), in every tag's own problem, or {class: weight} of a
            tag's own rows (of two classes: of both), where a class that is not named counts 1.
        solver: "joint", this package's, or scikit-learn's liblinear, saga or sgd: a tag at a time in memory, but sgd on
            rows of a store that are not, which it goes through chunk by chunk.
        device: where to compute; None: where X is, the CPU for arrays and stores.
        memory_limit: bytes that the rows of a store may take on a CPU; if they are more they are read on every pass.
        random_state: int or None; of the rows that steps are computed from, or of scikit-learn's solver.
        verbose: show a progress bar.

    After `fit`: classes_ (K,), coef_ (K, D) and intercept_ (K,) float64 (K = 1 of two classes: the second's), C_,
    objective_, n_iter_, converged_ and gap_ (K,): relative duality gaps, exact whatever the solver was.
    """

    def __init__(
        self,
        *,
        C: float | NDArray[np.float64] = 1.0,
        alpha_fraction: float | None = None,
        tol: float = 1e-6,
        max_iter: int = 200,
        fit_intercept: bool = True,
        penalise_intercept: bool = True,
        class_weight: str | dict[Any, float] | None = None,
        solver: Solver = "joint",
        device: str | None = None,
        memory_limit: int = MEMORY_LIMIT,
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.C = C
        self.alpha_fraction = alpha_fraction
        self.tol = tol
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept
        self.penalise_intercept = penalise_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.device = device
        self.memory_limit = memory_limit
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any, *, start: NDArray[np.float64] | None = None) -> Self:
        """Fit.

        Args:
            X: (n, D), array or torch tensor, or `StoreRows`.
            y: (n,) of two or more classes, or (n, K) of 0 and 1 (bool where K = 1), where a row may have several or no
                tags.
            start: (K, D + 1), where to begin: [coef_, intercept_] of a neighbouring C. None: from 0.

        Raises:
            ValueError: NaN or infinity in X, one class only in y of one column, a parameter out of its range.
        """
        self._check()
        rows, y = self._rows(X, y)
        problem = self._problem(rows, y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        passes = LocalPasses(rows, problem)
        if self.solver == "joint":
            self._solve(passes, start, seed)
        else:
            self._with_scikit_learn(passes, seed)
        self._warn()
        return self

    def fit_passes(self, passes: Passes, classes: NDArray[Any], start: NDArray[np.float64] | None = None) -> Self:
        """Fit over passes that others make (`workers.py`); the tags are those of its problem, named by `classes`."""
        self._check()
        self.classes_, self.multilabel_, self.n_features_in_ = classes, False, passes.columns
        self._solve(passes, start, int(check_random_state(self.random_state).randint(2**31 - 1)))
        self._warn()
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """x . w + b, float64 (n, K); (n,) of two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=(np.float64, np.float32))
        used = np.flatnonzero((self.coef_ != 0).any(axis=0))
        margins = X[:, used].astype(np.float64) @ self.coef_[:, used].T + self.intercept_
        one = margins.shape[1] == 1 and not self.multilabel_
        return np.asarray(margins[:, 0] if one else margins)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """(n, classes), normalised to a sum of 1 (liblinear's one-vs-rest); of several tags a row each its own."""
        share = 1 / (1 + np.exp(-np.clip(self.decision_function(X), -700, 700)))
        if self.multilabel_:
            return np.asarray(share)
        if share.ndim == 1:
            return np.stack([1 - share, share], axis=1)
        total = share.sum(axis=1, keepdims=True)
        return np.asarray(np.where(total > 0, share / np.where(total > 0, total, 1), 1 / share.shape[1]))

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of the largest margin, (n,); of several tags a row 0 and 1, (n, K)."""
        margins = self.decision_function(X)
        if self.multilabel_:
            return np.asarray((margins > 0).astype(int))
        best = (margins > 0).astype(int) if margins.ndim == 1 else margins.argmax(axis=1)
        return np.asarray(self.classes_[best])

    def _check(self) -> None:
        if self.solver not in _SOLVERS:
            raise ValueError(f"solver: expected one of {', '.join(_SOLVERS)}, got {self.solver!r}")
        if self.class_weight not in (None, "balanced") and not isinstance(self.class_weight, dict):
            raise ValueError(f"class_weight: expected None, 'balanced' or {{class: weight}}, got {self.class_weight!r}")
        for name in ("C", "tol", "max_iter", *(() if self.alpha_fraction is None else ("alpha_fraction",))):
            value = getattr(self, name)
            if not np.all((np.asarray(value) > 0) & np.isfinite(value)):
                raise ValueError(f"{name}: expected a number above 0, got {value!r}")

    def _rows(self, X: Any, y: Any) -> tuple[Rows, NDArray[Any]]:
        """X as rows on the device and y, both checked; sets classes_ and what y is."""
        rows: Rows
        if isinstance(X, StoreRows):
            y = check_array(y, ensure_2d=False, dtype=None)
            self.n_features_in_ = X.columns
            if len(y) != X.count:
                raise ValueError(f"y: expected {X.count} rows, as X has, got {len(y)}")
            rows = X.in_memory() if X.device.type == "cuda" or X.bytes <= self.memory_limit // 2 else X
        else:
            if isinstance(X, torch.Tensor):
                if X.ndim != 2 or not bool(torch.isfinite(X).all()):
                    raise ValueError(f"X: expected (n, D) without NaN or infinity, got {tuple(X.shape)}")
                matrix = X
                self.n_features_in_ = X.shape[1]
                y = check_array(y, ensure_2d=False, dtype=None)
            else:
                X, y = validate_data(self, X, y, dtype=(np.float64, np.float32, np.float16), multi_output=True)
                matrix = torch.from_numpy(np.ascontiguousarray(X))
            rows = MatrixRows(matrix if self.device is None else matrix.to(self.device))
        check_classification_targets(y)
        self.multilabel_ = type_of_target(y) == "multilabel-indicator" or (y.ndim == 2 and y.dtype == bool)
        if self.multilabel_:
            self.classes_ = np.arange(y.shape[1])
        else:
            if y.ndim == 2 and y.shape[1] == 1:
                warnings.warn(
                    "A column-vector y was passed when a 1d array was expected: expected (n,), got (n, 1)",
                    DataConversionWarning,
                    stacklevel=3,
                )
                y = y[:, 0]
            elif y.ndim == 2:
                raise ValueError(f"y: expected (n,), or (n, K) of 0 and 1, got {y.shape} with other values")
            self.classes_, y = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(f"y: expected at least two classes, got one class: {self.classes_.tolist()}")
        return rows, y

    def _problem(self, rows: Rows, y: NDArray[Any]) -> Problem:
        device = rows.device
        if self.multilabel_:
            labels, codes, positives = torch.from_numpy(y.astype(bool)), None, y.astype(bool).sum(axis=0)
        else:
            shown = np.arange(len(self.classes_)) if len(self.classes_) > 2 else np.array([1])
            labels, codes = torch.from_numpy(y.astype(np.int64)), torch.from_numpy(shown).to(device)
            positives = np.bincount(y, minlength=len(self.classes_))[shown]
        if isinstance(self.class_weight, dict):
            weights = np.array([float(self.class_weight.get(one, 1)) for one in self.classes_.tolist()])
            two = len(self.classes_) == 2 and not self.multilabel_
            positive, negative = (weights[1:], weights[:1]) if two else (weights, np.ones_like(weights))
        else:
            positive, negative = class_costs(positives, len(y), self.class_weight)
        C = np.asarray(self.C, dtype=np.float64)
        if C.shape not in ((), (len(positives),)):
            raise ValueError(f"C: expected a number or one for each of {len(positives)} tags, got {C.shape}")
        problem = Problem(
            labels.to(device),
            codes,
            torch.from_numpy(C * positive).to(device),
            torch.from_numpy(C * negative).to(device),
            self.fit_intercept,
            self.penalise_intercept,
        )
        if self.alpha_fraction is None:
            self.C_ = np.broadcast_to(C, len(positives)).copy()
            return problem
        factor = 1 / (self.alpha_fraction * strongest_penalty(LocalPasses(rows, problem)).clamp_min(1e-300))
        self.C_ = C * factor.cpu().numpy()
        return problem.scaled(factor)

    def _solve(self, passes: Passes, start: NDArray[np.float64] | None, seed: int) -> None:
        shown = self._progress(passes.problem.tags)
        with shown:

            def report(done: int, gap: torch.Tensor) -> None:
                shown.n = int((gap <= self.tol).sum())
                shown.set_postfix_str(f"{done} passes, largest gap {float(gap.max()):.1e}")

            solution = solve(
                passes,
                tol=self.tol,
                max_passes=int(self.max_iter),
                start=None if start is None else torch.from_numpy(np.asarray(start, dtype=np.float64).T),
                sample_rows=min(START_ROWS, max(1024, self.memory_limit // (16 * passes.columns))),
                seed=seed,
                report=report,
            )
        W = solution.W.cpu().numpy()
        self.coef_, self.intercept_ = np.ascontiguousarray(W[:-1].T), W[-1].copy()
        self.n_iter_ = solution.passes.cpu().numpy()
        self.gap_, self.objective_ = solution.gap.cpu().numpy(), solution.objective.cpu().numpy()
        self.converged_ = self.gap_ <= self.tol

    def _with_scikit_learn(self, passes: LocalPasses, seed: int) -> None:
        problem, rows = passes.problem, passes.rows
        if isinstance(rows, StoreRows) and self.solver != "sgd":
            rows = rows.in_memory()  # neither reads chunks
        settings = Settings(self.solver, self.tol, int(self.max_iter), self.fit_intercept, seed)
        with self._progress(problem.tags) as shown:
            W, self.n_iter_ = fit_each(rows, problem, settings, shown)
        self.converged_ = self.n_iter_ < self.max_iter
        point = torch.from_numpy(W).to(problem.device)
        sums, _ = LocalPasses(rows, problem).evaluate(point, torch.arange(problem.tags, device=problem.device))
        objective = primal(sums, point, problem)
        self.objective_ = objective.cpu().numpy()
        self.gap_ = ((objective - dual(sums, problem)).clamp_min(0) / objective).cpu().numpy()
        self.coef_, self.intercept_ = np.ascontiguousarray(W[:-1].T), W[-1].copy()

    def _progress(self, tags: int) -> tqdm[Any]:
        return tqdm(total=tags, desc="L1", unit="tag", disable=not self.verbose)

    def _warn(self) -> None:
        failed = int((~self.converged_).sum())
        if failed:
            warnings.warn(
                f"{failed} of {len(self.gap_)} tags did not converge in {self.max_iter} iterations: the largest "
                f"relative duality gap is {self.gap_.max():.1e}, tol is {self.tol:g}",
                ConvergenceWarning,
                stacklevel=3,
            )


def class_costs(
    positives: NDArray[np.int64], rows: int, class_weight: str | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of the tags' positive and negative rows, (K,) each; a class without a row counts as 1."""
    positives = np.asarray(positives, dtype=np.float64)
    if class_weight is None:
        return np.ones_like(positives), np.ones_like(positives)
    return rows / (2 * np.maximum(positives, 1)), rows / (2 * np.maximum(rows - positives, 1))
