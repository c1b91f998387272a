"""What a training takes of memory, by arithmetic: told before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from sww_ros.training.model import TrainedModel
from sww_ros.training.recipe import Recipe

_GB = 1e9


@dataclass(frozen=True)
class TrainingMemory:
    """
    Bytes of one process.

    `weights` are all of the model's, `gradients` and `moments` (AdamW's two) those of what is
    trained; `row` is what one row of a forward pass (a visual or text token) keeps until the
    backward pass has been there, `recomputed` what it needs besides while its layer is done again.
    """

    weights: int
    gradients: int
    moments: int
    row: int
    recomputed: int = 0

    @property
    def fixed(self) -> int:
        """What does not depend on the clips."""
        return self.weights + self.gradients + self.moments

    def __str__(self) -> str:
        return (f'{self.fixed / _GB:.2g} GB of weights, gradients and moments; a pass of 1,000 '
                f'rows about {1000 * (self.row + self.recomputed) / _GB:.2g} GB')


def memory_of(model: TrainedModel, recipe: Recipe, width: int) -> TrainingMemory:
    """
    Return what training this model takes.

    A layer keeps its two norms' inputs and outputs and three more of their width, four of its
    attention's (queries, keys, values, what is attended) and four of its MLP's; a layer that is
    recomputed keeps its input. What the tower and the logits take is left out: they are few rows.

    :param width: bytes of an activation
    """
    text = model.stock.config.get_text_config()
    heads = text.num_attention_heads * (getattr(text, 'head_dim', None)
                                        or text.hidden_size // text.num_attention_heads)
    layer = width * (7 * text.hidden_size + 4 * heads + 4 * text.intermediate_size)
    layers, ends = text.num_hidden_layers, 2 * width * text.hidden_size
    trained = [(weight.numel(), weight.element_size()) for weight in model.trained.values()]
    gradients = sum(number * size for number, size in trained)
    return TrainingMemory(
        weights=sum(weight.numel() * weight.element_size() for weight in model.net.parameters()),
        gradients=gradients, moments=2 * gradients,
        row=ends + layers * (width * text.hidden_size if recipe.gradient_checkpointing else layer),
        recomputed=layer if recipe.gradient_checkpointing else 0)
