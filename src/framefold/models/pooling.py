"""From states of one modality (B, T, H) and their mask (B, T) to one vector a video, (B, size) float32.

What is masked contributes nothing, whatever it holds; a video of which nothing is kept gets zeros.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.models.heads import masked_mean
from framefold.models.initialization import from_fan_in
from framefold.models.normalization import MaskedBatchNorm
from framefold.params.models import NextVladParams, PoolingParams


class Pooling(nn.Module):
    """(states (B, T, H), mask (B, T)) -> (B, size)."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size


class MeanPooling(Pooling):
    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(states, mask)


class MaxPooling(Pooling):
    """The largest value of each unit."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        kept = states.float().masked_fill(~mask.unsqueeze(-1), float("-inf"))
        largest = F.pad(kept, (0, 0, 0, 1), value=float("-inf")).amax(1)  # there may be no state at all
        return largest.masked_fill(~mask.any(1, keepdim=True), 0.0)


class AttentionPooling(Pooling):
    """Mean weighted by a learned score of each state (Yang et al. 2016). All scores start at 0, as the plain mean."""

    def __init__(self, hidden: int):
        super().__init__(hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.dense.apply(from_fan_in)
        nn.init.zeros_(self.score.weight)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        kept = states.masked_fill(~mask.unsqueeze(-1), 0.0)
        scores = self.score(torch.tanh(self.dense(kept))).squeeze(-1).float()  # (B, T)
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=1)
        return (weights.unsqueeze(-1) * kept.float()).sum(1)  # kept is zero where nothing may be said


class NextVlad(Pooling):
    """NeXtVLAD (Lin, Xiao & Fan 2018): how states deviate from learned cluster centres, in groups of their units.

    Each state is widened `expansion` times and cut into `groups` vectors of D units. A vector belongs softly to
    `clusters` clusters, as strongly as its group's gate says, and adds its differences to their centres; these sums
    (B, clusters, D) are brought to length 1, normalised over the batch and projected to `output` units. The context
    gating that follows in the paper is left to the classification head.
    """

    def __init__(self, hidden: int, sizes: NextVladParams):
        super().__init__(sizes.output)
        wide = sizes.expansion * hidden
        if wide % sizes.groups:
            raise UserError(f"pooling.nextvlad.groups: {sizes.groups} do not divide {wide} widened hidden units")
        self.groups, units = sizes.groups, wide // sizes.groups
        self.expand = nn.Linear(hidden, wide)
        self.gate = nn.Linear(wide, sizes.groups)
        self.assign = nn.Linear(wide, sizes.groups * sizes.clusters, bias=False)
        self.assign_norm = MaskedBatchNorm(sizes.groups * sizes.clusters)
        self.centres = nn.Parameter(torch.empty(sizes.clusters, units))
        self.sums_norm = MaskedBatchNorm(sizes.clusters * units)
        self.out = nn.Linear(sizes.clusters * units, sizes.output)
        self.apply(from_fan_in)
        nn.init.normal_(self.centres, std=units**-0.5)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        wide = self.expand(states.masked_fill(~mask.unsqueeze(-1), 0.0))  # (B, F, expansion * H)
        sums, some = self._deviations(wide, mask), mask.any(1)
        normed = self.sums_norm(F.normalize(sums, dim=-1).flatten(1), some)  # (B, clusters * D)
        return self.out(normed).float().masked_fill(~some.unsqueeze(-1), 0.0)

    def _deviations(self, wide: Tensor, mask: Tensor) -> Tensor:
        """Sums over states and groups of their weighted differences to the centres, (B, clusters, D) float32."""
        cut = (self.groups, -1)
        assigned = self.assign_norm(self.assign(wide), mask).unflatten(-1, cut).softmax(-1)  # (B, F, groups, clusters)
        gated = assigned * self.gate(wide).sigmoid().unsqueeze(-1)
        weights = gated.masked_fill(~mask[:, :, None, None], 0.0).flatten(1, 2)  # (B, F * groups, clusters)
        vectors = wide.unflatten(-1, cut).flatten(1, 2)  # (B, F * groups, D)
        summed = (weights.transpose(1, 2) @ vectors.to(weights.dtype)).float()
        return summed - weights.sum(1).unsqueeze(-1) * self.centres


POOLINGS = {"mean": MeanPooling, "max": MaxPooling, "attention": AttentionPooling}


def text_pooling(params: PoolingParams, hidden: int) -> Pooling:
    """The module that pools text states; `size` is the width of what it gives."""
    return _pooling(params.text, params, hidden)


def frame_pooling(params: PoolingParams, hidden: int) -> Pooling:
    """The module that pools frame states; `size` is the width of what it gives."""
    return _pooling(params.frames, params, hidden)


def _pooling(kind: str, params: PoolingParams, hidden: int) -> Pooling:
    if kind == "nextvlad":
        return NextVlad(hidden, params.nextvlad)
    return POOLINGS[kind](hidden)
