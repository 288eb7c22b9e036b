"""Membership inference for sentences: whether all inputs of a sentence lie in the input space of the first layer."""

import torch

from metaleak.attacks.attack import Answers, Progress, Targets
from metaleak.attacks.observation import Observation
from metaleak.attacks.text.candidates import single_inputs
from metaleak.attacks.text.input_space import InputSpace, NothingShown
from metaleak.attacks.text.matrices import matrices_of
from metaleak.attacks.text.span_attack import space_of
from metaleak.attacks.text.text_attack import TextAttack
from metaleak.clients.models import TextModel


class TextMembership(TextAttack):
    """Infers whether a sentence was in the learner's set, from one matrix of the first layer, see `TextSpan`.

    The score of a sentence depends on the token that lies farthest from the layer's input space, relative to the
    tolerance for noise. All tokens of a sentence that a learner holds lie in the space. Those of another sentence may
    do so, too, if each token occurs at the same position in some sentence that the learner holds. Support and query
    set share one space. Second-order rules include the support set, provided that the inner rate raises it above
    rounding; first-order rules leave nothing of it.
    """

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return the scores of the target sentences, `(T,)` float64.

        A score is positive if all inputs of the sentence lie in the space up to the tolerance. It is 0, which favors
        neither answer, if the learner's gradient determines no input space, see `input_space`. Raises `ValueError` in
        one line if this holds for all learners, and if no suitable matrix is shared.
        """
        model, parameters = observation.model, observation.parameters
        assert isinstance(model, TextModel)
        weight = matrices_of(observation, self.matrix, second=False).first
        spaces: dict[int, InputSpace] = {}
        nothing: dict[int, NothingShown] = {}
        scores = torch.zeros(len(targets.rows), dtype=torch.float64)
        length = targets.examples.shape[1]
        # All learners of a mean share one gradient.
        rows = targets.rows if observation.mean_of == 1 else torch.zeros_like(targets.rows)
        for number, (sentence, row) in enumerate(zip(targets.examples, rows.tolist(), strict=True)):
            if row not in spaces and row not in nothing:
                gradient = observation.gradients[weight][row]
                try:
                    spaces[row] = space_of(model, parameters, weight, gradient, length)
                except NothingShown as error:
                    nothing[row] = error
            if row in spaces:
                places = (sentence != model.padding).nonzero().flatten()
                inputs = single_inputs(model, parameters, weight, sentence[places], places, length)
                ratios = spaces[row].distances(inputs) / spaces[row].tolerances(inputs)
                scores[number] = -ratios.clamp(min=1e-9).log().amax()
            if progress is not None:
                progress(number + 1, len(scores))
        if nothing and not spaces:
            raise next(iter(nothing.values()))
        return Answers(scores)
