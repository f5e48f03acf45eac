"""Points of many dimensions laid out in two, and how well classes keep apart before that."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingDependencyError

FEWEST = 10
"""Points below which there is no map worth looking at."""
_PERPLEXITY = 30.0


def require_scikit_learn() -> None:
    """Refuse a map that could not be computed.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "report", "a report") from error


def t_sne(features: NDArray[np.float32], *, seed: int) -> NDArray[np.float64]:
    """Lay points out in a plane so that neighbours stay neighbours (van der Maaten and Hinton).

    Each feature is centred; the scale of the whole does not matter. Starts from the first two
    principal components.

    Args:
        features: ``(n, n_features)``, n at least ``FEWEST``. Not modified.
        seed: Of the solver of the principal components.

    Returns:
        ``(n, 2)``.
    """
    from sklearn.manifold import TSNE

    centred = features.astype(np.float64) - features.mean(0)
    spread = float(np.sqrt((centred**2).sum(1).mean()))
    if not spread:
        return np.zeros((len(features), 2))
    n = len(features)
    method = TSNE(perplexity=min(_PERPLEXITY, (n - 1) / 3), init="pca", random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # of its own, on few points
        return np.asarray(method.fit_transform(centred / spread), np.float64)


def share_of_like_neighbours(features: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    """Share of points whose nearest neighbour, of all others, is of their class; 0 to 1.

    Args:
        features: ``(n, n_features)``, n at least 2. Not modified.
        classes: ``(n,)``.
    """
    points = features.astype(np.float64) - features.mean(0)
    squares = (points**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    return float((classes[distances.argmin(1)] == classes).mean())
