"""The loss of one training run: a main loss on the heads' logits, plus auxiliary objectives with a weight each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from tmkd.models.student import AnyBatch, Student, StudentOutput

PairLoss = Callable[[StudentOutput, Tensor], Tensor]
"""A main loss: (output for n pairs, their rows in the training set [n] int64) -> the loss of each pair, [n]."""


class AuxiliaryObjective(nn.Module):
    """A loss term beside the main loss, computed from the student's hidden states.

    A subclass computes `loss`. Its parameters that require a gradient are trained with the student and saved in the
    resumable state, and they are dropped when training ends: the finished student has none of them.

    Args:
        weight: What its loss is multiplied by.
        layers: The student's layers (indices) whose hidden states it reads.
        until: It ends after this share of the steps.
    """

    def __init__(self, weight: float, layers: Sequence[int], until: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.layers = tuple(layers)
        self.until = until

    def loss(self, output: StudentOutput, batch: AnyBatch, rows: Tensor) -> Tensor:
        """Compute the loss of each pair, without the weight.

        Args:
            output: Of the student for the batch, with the hidden states after `layers`.
            batch: n pairs, in the form that the student reads.
            rows: Which pairs of the training set these are, [n] int64.

        Returns:
            [n] float32.
        """
        raise NotImplementedError


class StatesObjective(AuxiliaryObjective):
    """An objective by which the student's hidden states learn to equal those of one of its teachers.

    The student begins with the layers of the first teacher, or beside them, and so in its space. Each other teacher has
    a space of its own: for it the student's hidden states go through a trained matrix, which is the identity at first.

    References:
        Jiao et al. 2020, "TinyBERT", equation 8, whose W_h is this matrix.

    Args:
        weight: As in `AuxiliaryObjective`.
        layers: As in `AuxiliaryObjective`.
        until: As in `AuxiliaryObjective`.
        number: Of the teacher, from 0.
        width: Of the hidden states, d.
    """

    def __init__(self, weight: float, layers: Sequence[int], until: float, number: int, width: int) -> None:
        super().__init__(weight, layers, until)
        self.number = number
        self.projections = nn.ModuleDict()  # one at most, under a name that no other teacher's has
        if number:
            projection = nn.Linear(width, width, bias=False)
            nn.init.eye_(projection.weight)
            self.projections[f"teacher-{number}"] = projection

    def projected(self, states: Tensor) -> Tensor:
        """The student's hidden states [..., d] in the teacher's space, float32."""
        for projection in self.projections.values():
            states = projection(states)
        return states.float()


class TotalLoss:
    """The main loss plus every auxiliary objective's loss times its weight.

    Args:
        main: The main loss.
        objectives: The auxiliary objectives.
    """

    def __init__(self, main: PairLoss, objectives: Sequence[AuxiliaryObjective] = ()) -> None:
        self.main = main
        self.objectives = tuple(objectives)
        self.active = self.objectives

    @property
    def layers(self) -> tuple[int, ...]:
        """The student's layers whose hidden states are read now."""
        return tuple(sorted({layer for objective in self.active for layer in objective.layers}))

    def begin_step(self, done: float) -> None:
        """Leave out the objectives that have ended.

        Args:
            done: The share of the steps that are behind, below 1.
        """
        self.active = tuple(objective for objective in self.objectives if done < objective.until)

    def run(self, model: Student, batch: AnyBatch, rows: Tensor) -> tuple[StudentOutput, list[Tensor]]:
        """Run the model, and compute the weighted auxiliary losses (in the caller's autocast mode).

        Args:
            model: The student.
            batch: n pairs.
            rows: Which pairs of the training set these are, [n] int64.

        Returns:
            The output, and for each objective that has not ended its weighted loss of each pair, [n].
        """
        output: StudentOutput = model(batch, self.layers)
        return output, [objective.weight * objective.loss(output, batch, rows) for objective in self.active]

    def total(self, output: StudentOutput, auxiliary: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Compute the total loss of each pair, [n]; arguments as `run` takes and returns them."""
        found = self.main(output, rows)
        for term in auxiliary:
            found = found + term
        return found

    def trained(self, model: Student) -> dict[str, nn.Parameter]:
        """Name every parameter that is trained: the model's, then those of the objectives.

        Raises:
            ValueError: Two of them have the same name.
        """
        found: dict[str, nn.Parameter] = {}
        for module in (model, *self.objectives):
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                if name in found:
                    raise ValueError(f"two trained parameters are called {name}")
                found[name] = parameter
        return found
