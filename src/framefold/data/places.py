"""Where the real positions of a padded batch are, noted on the host so that a model can leave padding out."""

import torch
from torch import Tensor

CPU_STEP = 128  # the CPU prepares its products anew for every number of rows, which costs more than some rows more


def with_places(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch of videos with the flat indices of what is real in it, for `models.packing`; any other batch as it is.

    "real_text" int64 into B * T, "real_inputs" into B * (T + F), text before frames, "real_pairs" likewise for the
    mismatched pairs if there are any. Called where the batch is made, before it goes to `device`: how many there are is
    a shape, and to learn it from a mask on a GPU the host would wait.
    """
    if "text_mask" not in batch or "frame_mask" not in batch:
        return batch
    text, step = batch["text_mask"], CPU_STEP if device.type == "cpu" else 1
    masks = {"real_text": text, "real_inputs": torch.cat([text, batch["frame_mask"]], dim=1)}
    if "pair_rows" in batch:
        masks["real_pairs"] = torch.cat([text[batch["pair_rows"]], batch["pair_frame_mask"]], dim=1)
    return batch | {name: places(mask, step) for name, mask in masks.items()}


def places(mask: Tensor, step: int) -> Tensor:
    """Flat indices (N,) of what is true in a mask (B, L) on the host, then of some of the rest: N is a multiple of
    `step` where the mask has room for it."""
    real, rest = (part.flatten().nonzero().squeeze(1) for part in (mask, ~mask))
    return torch.cat([real, rest[: -len(real) % step]])
