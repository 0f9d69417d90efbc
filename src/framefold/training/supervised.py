"""Learning from labels with more than cross-entropy: losses for long tails, auxiliary heads, consistency.

A term of weight 0 costs nothing. With R-Drop a batch is seen twice, with a dropout of its own each time, and every
other term is the mean over both views; the contrast takes them as two videos of one class.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from framefold.models.backbone import Batch
from framefold.models.heads import LinearHead, ProjectionHead
from framefold.objectives import consistency, imbalance
from framefold.objectives.classification import accuracy, cross_entropy, focal_cross_entropy
from framefold.objectives.supervised_contrast import supervised_contrast
from framefold.params.supervised import LossParams, SupervisedParams
from framefold.training.optimization import depth_role, layered_rates
from framefold.training.sharing import Share

Losses = dict[str, tuple[float, Tensor]]  # name -> weight, loss
Parts = dict[str, Tensor]


class View(NamedTuple):
    """One pass over a batch. `shifted`: logits as the losses see them, after logit adjustment."""

    pooled: Tensor  # (B, P)
    logits: Tensor  # (B, C)
    shifted: Tensor  # (B, C)


class SupervisedModel(nn.Module):
    """A backbone with what its training alone needs: auxiliary heads, and what the sizes of classes say.

    categories: ids `LLSS` of the classes. labels (N,): of the videos that train, and of no others.
    forward: (batch, this process's share of the global batch, the EMA of this model in eval mode or None) -> (total
    loss, its detached parts). "label" (B,) are the classes.
    """

    class_weights: Tensor | None  # (C,)
    shift: Tensor | None  # (C,), of the logits
    level1_of: Tensor  # (C,) int64

    def __init__(
        self, backbone: Any, params: SupervisedParams, categories: Sequence[str], labels: npt.NDArray[np.integer]
    ):
        super().__init__()
        self.backbone, self.params = backbone, params
        groups = sorted({name[:2] for name in categories})
        inputs, contrast = backbone.pooled_size, params.contrast
        self.level1_head = LinearHead(inputs, len(groups)) if params.level1 else None
        self.projection = ProjectionHead(inputs, contrast.embed_dim) if contrast.weight else None
        level1_of = torch.tensor([groups.index(name[:2]) for name in categories])
        self.register_buffer("level1_of", level1_of, persistent=False)  # checkpoints hold nothing that params say
        self._count(imbalance.shown_sizes(labels, len(categories), params.oversampling), params.loss)

    def _count(self, sizes: npt.NDArray[np.float64], params: LossParams) -> None:
        """Keep what the sizes (C,) of the classes say, where it is asked for."""
        beta, tau = params.class_balance, params.logit_adjustment
        weights = torch.from_numpy(imbalance.effective_number_weights(sizes, beta)).float() if beta else None
        shift = torch.from_numpy(tau * imbalance.log_priors(sizes)).float() if tau else None
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.backbone.word_embeddings

    def learning_rates(self) -> dict[str, float]:
        """Peak rates by the roles of `role_of`."""
        rates, decay = self.params.peak_rates(), self.params.layer_decay
        return rates if decay == 1 else layered_rates(rates, decay, self.backbone.text.config.num_hidden_layers)

    def role_of(self, name: str) -> str:
        prefix, _, rest = name.partition(".")
        role = self.backbone.role_of(rest) if prefix == "backbone" else "head"
        if role != "text" or self.params.layer_decay == 1:
            return role
        return depth_role(self.backbone.text.depth_of(rest.removeprefix("text.")))

    def view(self, batch: Batch) -> View:
        pooled = self.backbone.encode(batch).pooled
        logits = self.backbone.head(pooled)
        return View(pooled, logits, logits if self.shift is None else logits + self.shift)

    def forward(self, batch: Batch, share: Share, average: "SupervisedModel | None") -> tuple[Tensor, Parts]:
        params = self.params
        views = [self.view(batch)]
        if params.r_drop:
            views.append(self.view(batch))
        losses: Losses = {"label": (1.0, _mean([self._classification(view, batch) for view in views]))}
        if self.level1_head is not None:
            losses["level1"] = params.level1, _mean([self._level1(view, batch) for view in views])
        if params.r_drop:
            losses["r_drop"] = params.r_drop, consistency.symmetric_kl(views[0].shifted, views[1].shifted)
        if average is not None:
            losses["self_distillation"] = params.self_distillation.weight, self._towards(average, views, batch)
        if self.projection is not None:
            losses["contrast"] = params.contrast.weight, self._contrast(views, batch, share)
        parts = {"accuracy": _mean([accuracy(view.logits, batch["label"]) for view in views])}
        parts |= {f"loss_{name}": loss.detach() for name, (_, loss) in losses.items()}
        return torch.stack([weight * loss for weight, loss in losses.values()]).sum(), parts

    def _classification(self, view: View, batch: Batch) -> Tensor:
        labels, smoothing = batch["label"], self.params.label_smoothing
        gamma = self.params.loss.focal_gamma
        if gamma == 0 and self.class_weights is None:
            return cross_entropy(view.shifted, labels, smoothing)
        return focal_cross_entropy(view.shifted, labels, smoothing, gamma, self.class_weights)

    def _level1(self, view: View, batch: Batch) -> Tensor:
        """Smoothed cross-entropy with the level-1 group."""
        assert self.level1_head is not None
        logits = self.level1_head(view.pooled)  # (B, G)
        return cross_entropy(logits, self.level1_of.index_select(0, batch["label"]), self.params.label_smoothing)

    def _towards(self, average: "SupervisedModel", views: list[View], batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher = average.view(batch).shifted
        temperature = self.params.self_distillation.temperature
        return _mean([consistency.kl_to_teacher(view.shifted, teacher, temperature) for view in views])

    def _contrast(self, views: list[View], batch: Batch, share: Share) -> Tensor:
        """Over the videos of all processes."""
        assert self.projection is not None
        vectors = share.gather(torch.stack([self.projection(view.pooled) for view in views], dim=1))  # (N, views, E)
        classes, valid = share.gather(batch["label"]), share.gather_mask(torch.ones_like(batch["label"]).bool())
        classes, valid = (rows.repeat_interleave(len(views)) for rows in (classes, valid))
        return supervised_contrast(vectors.flatten(0, 1), classes, valid, self.params.contrast.temperature)


class SupervisedTask:
    """Teachers and students on labels, by the losses of a `SupervisedModel`."""

    def __init__(self, model: SupervisedModel):
        self.model: Any = model
        self.whole_batch = model.projection is not None  # contrast compares the videos of a batch
        self._average: nn.Module | None = None

    @property
    def average(self) -> nn.Module | None:
        """The EMA, in eval mode, where its predictions are asked for. The loop sets it, to a copy in training mode."""
        return self._average

    @average.setter
    def average(self, model: nn.Module | None) -> None:
        wanted = model is not None and self.model.params.self_distillation.weight
        self._average = model.eval() if model is not None and wanted else None

    def loss(self, batch: Batch, share: Share) -> tuple[Tensor, Parts]:
        return self.model(batch, share, self._average)

    def role_of(self, name: str) -> str:
        return self.model.role_of(name)


def needs_more_than_cross_entropy(params: SupervisedParams) -> bool:
    """Whether anything is on that a `ClassificationTask` does not do."""
    weights = (params.level1, params.r_drop, params.self_distillation.weight, params.contrast.weight)
    return any(weights) or any(params.loss.model_dump().values()) or params.layer_decay < 1


def backbone_of(model: nn.Module) -> nn.Module:
    """The model that is kept: heads that serve training alone have done their work."""
    return model.backbone if isinstance(model, SupervisedModel) else model


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]
