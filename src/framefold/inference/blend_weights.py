"""Weights of a blend's members, not negative and of sum one, that score best: over the simplex, or greedily."""

import itertools
from collections.abc import Callable

from framefold.inference.cross_fitting import best

Weights = tuple[float, ...]
Score = Callable[[Weights], float]  # of a blend with these weights; the higher the better

GRID_STEPS = {1: 1, 2: 20, 3: 10}  # members -> parts that the sum is cut into
FIRST_PARTS, LAST_PARTS = 10, 40  # with more members: the share of the sum that is moved at a time, halved in between
ROUNDS = 20  # greedy: members picked


def simplex_weights(n: int, score: Score) -> Weights:
    """The best point of a grid over the simplex of up to three members, of more where shifting weight ends.

    Equal weights win ties.
    """
    return best(simplex_grid(n), score) if n in GRID_STEPS else shifted_weights(n, score)


def simplex_grid(n: int) -> list[Weights]:
    """Weights of n members that sum to one, equal ones first (they win ties), then by distance from equal."""
    steps = GRID_STEPS[n]
    counts = (c for c in itertools.product(range(steps + 1), repeat=n) if sum(c) == steps)
    points = [tuple(c / steps for c in count) for count in counts]
    return [(1 / n,) * n, *sorted(points, key=lambda w: sum((x - 1 / n) ** 2 for x in w))]


def shifted_weights(n: int, score: Score) -> Weights:
    """Steepest ascent from equal weights: a share goes from one member to another while that raises the score.

    The share is halved when no pair gains, until it is below 1 / LAST_PARTS.
    """
    reached: Weights = (1 / n,) * n
    parts = FIRST_PARTS
    while parts <= LAST_PARTS:
        moves = [move(reached, giver, taker, 1 / parts) for giver, taker in itertools.permutations(range(n), 2)]
        found = best([reached, *moves], score)
        if found is reached:
            parts *= 2
        reached = found
    return reached


def move(weights: Weights, giver: int, taker: int, share: float) -> Weights:
    """Of the giver's weight `share`, or all of it where it has less, for the taker."""
    moved = min(share, weights[giver])
    return tuple(w - moved if i == giver else w + moved if i == taker else w for i, w in enumerate(weights))


def greedy_weights(n: int, score: Score) -> Weights:
    """Ensemble selection with replacement (Caruana et al. 2004): the weights are shares of the picks.

    Each of ROUNDS picks is the member whose joining scores highest, of equal ones that which was picked least. The
    best of all bags on the way is taken, of equal ones the smallest; equal weights win ties.
    """
    picks, bags = (0,) * n, [(1 / n,) * n]
    for _ in range(ROUNDS):
        nearest = sorted(range(n), key=lambda member: (picks[member], member))
        joined = [tuple(count + (i == member) for i, count in enumerate(picks)) for member in nearest]
        picks = best(joined, lambda bag: score(shares(bag)))
        bags.append(shares(picks))
    return best(bags, score)


def shares(picks: tuple[int, ...]) -> Weights:
    return tuple(count / sum(picks) for count in picks)
