"""The query and support attacks: meta-gradient matching that starts at the target image.

Source: Rafiei, Maheri, Rabiee 2024 (arXiv 2406.00249). The target is put into a dummy episode, which is optimized
until its meta-gradient matches the learner's; the target counts as a member if it hardly changed. The loss, optimizer
and schedule of the paper were not available; those below were chosen on MNIST and Fashion-MNIST.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metaleak.attacks.attack import Answers, Progress, Targets, joined
from metaleak.attacks.inversion.case import Case
from metaleak.attacks.inversion.gradient_inversion import Unknowns, View, invert
from metaleak.attacks.inversion.gradient_matching import GradientMatching, in_turn
from metaleak.attacks.inversion.image_space import row_space, seen_by_dense_layer
from metaleak.attacks.inversion.outcome import read_outcome
from metaleak.attacks.inversion.starts import start_blurred, start_from_known, start_in_row_space
from metaleak.attacks.observation import Observation
from metaleak.clients.models import bias_of, input_weight_of

_TINY = 1e-12
"""Added to a loss before its logarithm is taken: the loss that float32 leaves of a perfect match."""


class InversionFromTarget(GradientMatching):
    """Membership inference by how much a target changes when a dummy episode that contains it is inverted.

    The target is put among the dummies, see `GradientMatching`. `decision` is the score: `distance` is the negative
    L2 distance over pixels by which the target changed. `outside` counts only the change out of the row space of the
    observed first-layer gradient, in which members lie and others do not; for models whose first layer is not dense
    it equals `distance`. `fit` is the negative logarithm of the loss while the target is held fixed, that is, how
    well the gradient can be matched with the target in the episode; `iterations: 1` is enough for it. `class` is the
    paper's rule: 1 if the adapted model assigns target and reconstruction to the same class, else 0.

    In the first `fit` steps the target is fixed. Images are optimized as pixels, or, if the model's first layer is
    dense and `total_variation` is 0, in the few directions on which the layer's gradient depends, without a box
    constraint. `whitening` equalizes the weights of these directions, see `seen_by_dense_layer`.
    """

    decision: Literal["outside", "distance", "fit", "class"] = "outside"
    fit: Annotated[int, Field(ge=0, le=100_000)] = 100
    whitening: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _fit_needs_steps(self) -> Self:
        if self.decision == "fit" and not self.fit:
            raise ValueError("fit: must be at least 1 with decision 'fit', got 0")
        return self

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return scores, reconstructions and the statistics `distance`, `outside`, `class_kept`, `fit_loss`, `loss`.

        With a dense first layer there is also `outside_prior`, a baseline without reconstruction: the fraction, in
        [0, 1], of the target's norm outside of the row space of the observed first-layer gradient. Losses are of the
        minimized objective, total variation included. A target's result depends on the seed, its learner and the
        target itself; other targets in the same chunk affect only the last bits. Raises `ValueError` if shapes do not
        fit, the observation lacks what `knows` requires, or a chunk needs more memory than is allowed.
        """
        return self.answers(self.case(observation, seed, targets), targets, progress)

    def answers(self, case: Case, targets: Targets, progress: Progress | None) -> Answers:
        """Return the answers of a call, for targets that fit the case."""
        if not len(targets.examples):
            return Answers(torch.empty(0), torch.empty_like(targets.examples))

        def answer(places: Tensor, tick: Callable[[], None]) -> Answers:
            return self._of_chunk(case, targets.at(places), tick)

        parts = self._parts(case, targets)
        counts = [len(places) for places in parts]
        return joined(parts, in_turn(parts, counts, self.fit + self.iterations, answer, progress))

    def parts(self, observation: Observation, targets: Targets) -> Sequence[Tensor]:
        """Return the indices of the targets that are computed together, see `Divisible`; raises as a call does."""
        return self._parts(self.case(observation, 0, targets), targets)

    def _parts(self, case: Case, targets: Targets) -> Sequence[Tensor]:
        everywhere = torch.arange(len(targets.rows), device=targets.rows.device)
        if not len(everywhere):
            return ()
        short, one = self.model_copy(update={"fit": 0, "iterations": 1}), targets.at(slice(1))

        def try_one() -> Answers:
            return short._of_chunk(case, one, lambda: None)

        return torch.split(everywhere, self.chunk_size(try_one, len(everywhere), targets.examples.device))

    def _of_chunk(self, case: Case, targets: Targets, tick: Callable[[], None]) -> Answers:
        """Return the answers to the targets of one chunk."""
        reconstructions, statistics = self._reconstructed(case, targets, tick)
        if self.decision == "class":
            score = statistics["class_kept"]
        elif self.decision == "fit":
            score = -(statistics["fit_loss"] + _TINY).log()
        else:
            score = -statistics[self.decision]
        return Answers(score, reconstructions, statistics)

    def _reconstructed(
        self, case: Case, targets: Targets, tick: Callable[[], None]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return reconstructions `(T, C, H, W)` and statistics for the targets of one chunk."""
        problem, known = case.problem, case.known
        images = targets.examples.float()
        rows = targets.rows
        views = case.views(rows, tuple(images.shape[1:]))
        parameters, gradients = views[0].coordinates.parameters, views[0].coordinates.gradients
        given = None if known is None else known[rows].float()
        counts = self.unknown_images(problem)

        # Only a single round can be computed in the span of its own gradient.
        first = None if self.total_variation or len(views) > 1 else input_weight_of(problem.model)
        space = (
            None
            if first is None
            else row_space(gradients[first], problem.images_of() + problem.images_of(other=True))
        )
        if given is not None:
            positions = problem.labels(rows.device) * problem.images_of(position=True, other=True)
            asked, other = start_from_known(given, positions), None
        else:
            make = (
                start_blurred
                if space is None
                else start_in_row_space(*space, gradients[str(first)], gradients.get(bias_of(str(first))))
            )
            drawn = make(images, case.learners[rows], sum(counts), case.seed)
            asked, other = drawn[:, : counts[0]], drawn[:, counts[0] :]
        slots = targets.positions * problem.images_of(position=True)
        asked[torch.arange(len(rows), device=rows.device), slots] = images

        if first is not None and space is not None:
            spanning = images[:, None] if given is None else torch.cat([given, images[:, None]], dim=1)
            inside = seen_by_dense_layer(first, parameters, gradients, space, spanning, self.whitening)
            views = (View(inside, views[0].counts),)
        inside = views[0].coordinates
        entered = None if given is None else inside.enter(given)
        labels = self.unknown_labels(problem, rows)
        start = Unknowns(inside.enter(asked), None if other is None else inside.enter(other), labels)
        found = invert(problem, views, start, entered, slots, self.schedule(self.fit), tick)
        return read_outcome(problem, inside, start, found, entered, slots)


def query_attack(**settings: Any) -> InversionFromTarget:
    """Return the attack "was this image in the learner's query set?" with these fields of `InversionFromTarget`.

    Raises pydantic's `ValidationError` for an invalid setting.

    """
    return InversionFromTarget(**settings)


def support_attack(**settings: Any) -> InversionFromTarget:
    """Return the attack "was this image in the learner's support set?" with these fields of `InversionFromTarget`.

    Its defaults are different, `knows: other`, `rate: 0.02` and `whitening: 1`, since the support images' part of a
    second-order meta-gradient is weak. Raises pydantic's `ValidationError` for an invalid setting.
    """
    return InversionFromTarget(**{"asks": "support", "knows": "other", "rate": 0.02, "whitening": 1.0, **settings})
