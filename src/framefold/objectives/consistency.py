"""Agreement of two predictions for the same videos: of two dropouts, or with a slower model."""

import torch.nn.functional as F
from torch import Tensor


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the rows of (KL(p || q) + KL(q || p)) / 2 for p, q = softmax of logits a, b (B, C), a scalar.

    R-Drop (Liang et al. 2021), with gradients to both.
    """
    log_p, log_q = F.log_softmax(a.float(), dim=-1), F.log_softmax(b.float(), dim=-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean() / 2


def kl_to_teacher(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over the rows of T^2 KL(softmax(teacher / T) || softmax(logits / T)), a scalar; both (B, C).

    T^2 keeps the size of gradients (Hinton et al. 2015); the teacher gets none.
    """
    log_p = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    log_q = F.log_softmax(logits.float() / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
