"""Whether two measures rank networks alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

EXACT_UP_TO = 8  # networks: all pairings of more are too many to try, and are drawn


class Rank(NamedTuple):
    """correlation: of ranks, -1 to 1, or None for fewer than three networks or all equal. p: two-sided, by permutation. n: networks."""

    correlation: float | None
    p: float | None
    n: int


def spearman(a: Sequence[float], b: Sequence[float]) -> Rank:
    """Spearman's rank correlation of two measures of the same networks."""
    from scipy import stats

    n = len(a)
    if n < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return Rank(None, None, n)

    def statistic(a):
        return stats.spearmanr(a, b).statistic

    draws = float('inf') if n <= EXACT_UP_TO else 9999
    test = stats.permutation_test((list(a),), statistic, permutation_type='pairings', n_resamples=draws, rng=0)
    return Rank(float(test.statistic), float(test.pvalue), n)
