"""What a recipe is: an ordered tuple of updates, all run in one jitted step.

UniWav has one update. A codec with discriminators would have two (generator, discriminator), a
student of frozen teachers one without slots.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

Tree = Any
BY_CORPUS = "_by_corpus"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a loss returns for one micro-batch; every leaf is a sum and may be added to another's.

    Attributes:
      loss: weighted sum of the losses, a scalar; what is differentiated.
      weight: sum of the weights; gradients are divided by its global total.
      statistics: sums that `Update.finish` turns into new slots.
      ratios: name -> (numerator, denominator) of the metrics: scalars, or for the names that end
        in BY_CORPUS vectors [corpora], in the order of `constants["corpora"]`.
    """

    loss: jax.Array
    weight: jax.Array
    statistics: dict[str, Tree]
    ratios: dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimiser step on one parameter group.

    Attributes:
      group: the key in `TrainState.params` that is differentiated.
      loss: (params, constants, slots, batch) -> Outputs.
      finish: (slots, statistics, new params) -> new slots, after the optimiser.
      metrics: (params, slots, statistics) -> extra metrics, scalars or vectors.
    """

    group: str
    loss: Callable[..., Outputs]
    finish: Callable[..., dict]
    metrics: Callable[..., dict]


def fresh_slots(params, fresh, source, *, refused, reset) -> tuple[dict, list[str]]:
    """`Recipe.adopt` of a recipe that takes no slots from another run."""
    return fresh, []


def no_activations(params, constants, slots, batch) -> list[tuple[str, jax.Array]]:
    """`Recipe.activations` of a recipe that shows none."""
    return []


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model with its updates.

    Attributes:
      initialize: key -> (params by group, slots by objective).
      updates: in the order in which the step runs them.
      validate: (params, constants, slots, batch, others) -> Outputs, with fixed randomness; others
        is a batch whose rows are those before the rows of `batch`, to confront them with.
      summarize: (totalled Outputs of `validate`) -> metrics as Python numbers.
      resettable: names of slots that a run may begin anew though it starts from another run.
      adopt: (params, fresh slots, source slots, refused paths, reset names) -> (slots, sentences
        on what was not taken), for a run that starts from another one.
      activations: (params, constants, slots, batch) -> ordered list of (name, array), from the
        features to the last layer, for whoever asks why a step went wrong.
    """

    initialize: Callable[[jax.Array], tuple[dict, dict]]
    updates: tuple[Update, ...]
    validate: Callable[..., Outputs]
    summarize: Callable[[Outputs], dict]
    resettable: tuple[str, ...] = ()
    adopt: Callable[..., tuple[dict, list[str]]] = fresh_slots
    activations: Callable[..., list[tuple[str, jax.Array]]] = no_activations
