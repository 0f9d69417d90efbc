"""The ceiling: Bayes' rule with the true model, on what was drawn before it was written, pictured or recorded badly."""

from typing import Any

import numpy as np

from framefold.data.demo.pictures import CUTAWAY, FIDELITY, VALUES, Scene
from framefold.data.demo.text import SMALL_TALK, Language, Words
from framefold.data.demo.world import World
from framefold.evaluation.metrics import official_scores, true_ranks

METHOD = (
    "argmax of the exact posterior over classes under the generative model (docs/demo.md), given the words as drawn "
    "and the attributes of every shot as drawn: no speech errors, no pose, blur, light or compression"
)


class Oracle:
    """Log-likelihoods (C,) of a video's draws under each class."""

    def __init__(self, world: World, language: Language, scene: Scene):
        self.prior = np.log(world.prior)
        self.own = scene.own  # (C, 5)
        with np.errstate(divide="ignore"):  # words that a class never says
            self.title, self.speech = np.log(language.title), np.log(language.speech)
            self.small_talk = np.log(language.small_talk)

    def text(self, words: Words) -> np.ndarray:
        said = np.concatenate([words.title, words.caption])
        topical = self.title[:, said].sum(axis=1) + self.speech[:, words.speech].sum(axis=1)
        idle = self.small_talk[said].sum() + self.small_talk[words.speech].sum()
        return np.logaddexp(np.log(1 - SMALL_TALK) + topical, np.log(SMALL_TALK) + idle)

    def frames(self, shots: np.ndarray) -> np.ndarray:
        anything = 1 / np.array(VALUES)
        meant = np.array(FIDELITY) * (shots[:, None] == self.own) + (1 - np.array(FIDELITY)) * anything  # (shots, C, 5)
        return np.log((1 - CUTAWAY) * meant.prod(axis=2) + CUTAWAY * anything.prod()).sum(axis=0)


def ceiling(world: World, truth: np.ndarray, text: np.ndarray, frames: np.ndarray) -> dict[str, Any]:
    """Scores of the oracle with everything, with text alone and with frames alone, from log-likelihoods (N, C)."""
    prior = np.log(world.prior)
    views = {"both": text + frames + prior, "text": text + prior, "frames": frames + prior}
    scores = {name: entry(world, truth, posterior) for name, posterior in views.items()}
    return {"method": METHOD, "split": "test", "n": len(truth)} | scores


def entry(world: World, truth: np.ndarray, posterior: np.ndarray) -> dict[str, float]:
    ranks = true_ranks(truth, posterior)
    top = {"top1": float((ranks == 0).mean()), "top5": float((ranks < 5).mean())}
    return official_scores(truth, posterior.argmax(axis=1), world.categories) | top
