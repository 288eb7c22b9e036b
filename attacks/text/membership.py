"""Membership of a sentence: whether all of its tokens lie in the space of what a layer took."""

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
    """Was this sentence in the learner's set? By one matrix of the first layer, see `TextSpan`.

    A sentence scores by that of its tokens which lies farthest from the space of the layer's inputs, as a multiple of
    what the noise allows. A sentence that a learner holds has none outside; one that it does not hold may have all
    inside, where every token stands at the same place of one that it holds. Support and query set are in one space:
    the support set's, through second-order rules, as far as the inner rate lifts it above the rounding. First-order
    rules leave nothing of the support set in it.
    """

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return the score of every target sentence `(T, tokens)`.

        It is 0, neither for nor against, where a learner's gradient shows nothing, see `input_space`. Raises
        `ValueError` in one line where that is so for all, and where no matrix is shared that the attack can use.
        """
        model, parameters = observation.model, observation.parameters
        assert isinstance(model, TextModel)
        weight = matrices_of(observation, self.matrix, second=False).first
        spaces: dict[int, InputSpace] = {}
        nothing: dict[int, NothingShown] = {}
        scores = torch.zeros(len(targets.rows), dtype=torch.float64)
        length = targets.examples.shape[1]
        # All learners of a mean are seen by the same gradient.
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
