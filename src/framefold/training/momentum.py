"""Contrast with a momentum encoder: its vectors are the candidates and, in part, the targets; a queue keeps old ones.

The momentum encoder is the EMA that the loop keeps of the model anyway (`pretrain.ema_decay`).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from framefold.objectives import itc
from framefold.objectives.classification import hits
from framefold.params.pretrain import ContrastParams
from framefold.training.sharing import Share


class Vectors(NamedTuple):
    """Unit vectors of the same videos, (B, E) each."""

    text: Tensor
    frames: Tensor


class VideoQueue(nn.Module):
    """The last `size` videos of earlier batches, as the momentum encoder saw them then.

    All of it is buffers: checkpoints hold it. The EMA's own queue is a copy.
    """

    not_averaged = True
    text: Tensor
    frames: Tensor
    keys: Tensor
    valid: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.size = size
        self.register_buffer("text", torch.zeros(size, dim))
        self.register_buffer("frames", torch.zeros(size, dim))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("valid", torch.zeros(size, dtype=torch.bool))  # false: not filled yet, or no pair
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))  # where the next video goes

    @torch.no_grad()
    def enqueue(self, vectors: Vectors, keys: Tensor, valid: Tensor) -> None:
        """Put a batch in the place of the oldest videos; of one larger than the queue its last videos."""
        count = len(keys)
        skipped = max(count - self.size, 0)
        slots = (self.position + torch.arange(skipped, count, device=keys.device)) % max(self.size, 1)
        for buffer, rows in zip((self.text, self.frames, self.keys, self.valid), (*vectors, keys, valid), strict=True):
            buffer.index_copy_(0, slots, rows[skipped:].to(buffer.dtype))
        self.position.copy_((self.position + count) % max(self.size, 1))


class MomentumContrast(nn.Module):
    """Symmetric InfoNCE of each video's text with the momentum encoder's frames of the global batch and the queue, and
    of its frames with their texts; with soft targets.

    A video never counts as a negative of itself, so a queue may outlast an epoch.
    """

    def __init__(self, params: ContrastParams):
        super().__init__()
        self.params = params
        self.queue = VideoQueue(params.queue, params.embed_dim)

    def forward(
        self, own: Vectors, scale: Tensor, momentum: Vectors, keys: Tensor, valid: Tensor, share: Share
    ) -> tuple[Tensor, Tensor]:
        """Loss and retrieval accuracy, scalars, as means over the valid videos of the global batch.

        own: of this process's videos, with gradients; momentum: the same videos by the momentum encoder. keys (B,),
        valid (B,) bool: what has both modalities. In training the batch joins the queue afterwards.
        """
        whole = Vectors(*(share.gather_in_order(rows) for rows in momentum))
        whole_keys, whole_valid = share.gather_in_order(keys), share.gather_in_order(valid.float()).bool()
        places = share.rank + share.world * torch.arange(len(keys), device=keys.device)
        candidate_keys = torch.cat([whole_keys, self.queue.keys])  # (C,), C = global batch + queue
        possible = torch.cat([whole_valid, self.queue.valid]) & (candidate_keys != keys.unsqueeze(1))  # (B, C)
        excluded = ~possible.scatter(1, places.unsqueeze(1), True)
        total = whole_valid.sum().clamp(min=1) * (share.own / share.total)
        loss = accuracy = torch.zeros((), device=keys.device)
        alpha = alpha_at(self.params, share.done)
        for side, other in (("text", "frames"), ("frames", "text")):
            candidates = torch.cat([getattr(whole, other), getattr(self.queue, other)])  # a copy: the queue changes
            logits = itc.masked_similarities(getattr(own, side), candidates, excluded, scale)
            targets = itc.masked_similarities(getattr(momentum, side), candidates, excluded, scale)
            loss = loss + (itc.soft_info_nce(logits, places, targets, alpha) * valid).sum() / total / 2
            accuracy = accuracy + (hits(logits.detach(), places) * valid).sum() / total / 2
        if self.training:
            self.queue.enqueue(whole, whole_keys, whole_valid)
        return loss, accuracy


def alpha_at(params: ContrastParams, done: float) -> float:
    """Share of the soft targets when a share `done` of the training is behind: never none, if there are any."""
    risen = min(done / params.alpha_ramp, 1.0) if params.alpha_ramp else 1.0
    return params.soft_targets * (params.alpha_start + (1 - params.alpha_start) * risen)
