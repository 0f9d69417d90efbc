"""Initial weights of layers without pretrained ones."""

from torch import nn


def from_fan_in(module: nn.Module) -> None:
    """Weights that keep unit variance (LeCun et al. 1998), zero biases; for `model.apply`.

    BERT's own constant, 0.02, is meant for 768 inputs: layers of other widths start almost silent with it, or too loud.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
