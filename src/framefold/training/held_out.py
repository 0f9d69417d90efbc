"""What pretraining has learned, measured on videos of the pool that are kept aside.

Each self-supervised objective asks its questions about them; what counts is how often the answer is right, beside how
often a guess would be.
"""

from collections import defaultdict

import torch

from framefold.data.batches import EpochBatches, VideoDataset
from framefold.objectives.distillation import has_soft_label
from framefold.params.pretrain import MismatchedParams
from framefold.training.pretraining import Answers, PretrainingModel
from framefold.training.views import Masking, MismatchedVideos

TOGETHER = 32  # videos at most, of like length, among which the right frame or text has to be found
EVERY_TEXT = MismatchedParams(share=1, hard=0, temperature=1, max_similarity=1)  # is shown with another video's frames
Report = dict[str, float | int]


@torch.inference_mode()
def measure(model: PretrainingModel, videos: VideoDataset, masking: Masking, device: torch.device) -> Report:
    """In fp32 on `videos` with soft labels; the same questions whatever the model was trained on.

    "teacher_agreement": share of the labelled videos whose best class is the teachers'. For each objective that the
    model has and that finds anything to ask: "<name>_accuracy", "<name>_by_guess" (always the most frequent of the
    hidden tokens; any one of the candidates) and "<name>_asked", the number of questions.
    """
    model.eval().to(device)
    agreed, labelled, answers, tokens = 0, 0, defaultdict[str, list[Answers]](list), []
    paired = MismatchedVideos(videos, EVERY_TEXT)
    batches = EpochBatches(paired, TOGETHER, seed=0, epoch=0, shuffle=False, transform=masking)
    for batch in (batches[i] for i in range(len(batches))):
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        for name, given in model.answers(on_device).items():
            answers[name].append(given)
        tokens.append(batch["token_targets"])
        has_label = has_soft_label(batch["soft"])
        same = model.backbone(on_device).argmax(-1).cpu() == batch["soft"].argmax(-1)
        agreed, labelled = agreed + int((same & has_label).sum()), labelled + int(has_label.sum())
    report: Report = {"teacher_agreement": agreed / max(labelled, 1), "held_out": len(videos)}
    for name, parts in answers.items():
        right = torch.cat([part.right for part in parts]).double()
        if not len(right):
            continue
        guesses = [part.by_guess for part in parts if part.by_guess is not None]
        hits_of_guess = torch.cat(guesses).double().sum() if guesses else torch.cat(tokens).bincount().max()
        guessed = float(hits_of_guess) / len(right)
        report |= {f"{name}_accuracy": float(right.mean()), f"{name}_by_guess": guessed, f"{name}_asked": len(right)}
    return report
