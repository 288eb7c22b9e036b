"""Reconstruction from random images, as in the classical gradient inversions."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metaleak.attacks.attack import Answers, Progress, Reconstructions, Targets, joined
from metaleak.attacks.inversion.case import Case, learners_at_a_time, several_rounds
from metaleak.attacks.inversion.gradient_inversion import Inversion, Unknowns, invert
from metaleak.attacks.inversion.gradient_matching import GradientMatching, in_turn, part_of
from metaleak.attacks.inversion.starts import start_random
from metaleak.attacks.nearest_reconstruction import nearest
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Rounds


class InversionFromNoise(GradientMatching):
    """Reconstruction of the attacked set, starting from random images.

    Each learner is inverted once for all of its targets, see `GradientMatching`. For membership, a target's score is
    its negative distance to the nearest reconstruction.
    """

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return the attacked set of every learner; the confidence of its images is the learner's negative loss.

        Raises `ValueError` if the observation lacks what `knows` requires or has no shape of images, or if a chunk
        needs more memory than is allowed.
        """
        return self._rebuilt(self.case(observation, seed), observation.input_shape, progress)

    def reconstruct_over_rounds(self, rounds: Rounds, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return the attacked set of every learner, one set for all rounds; see `over_rounds`."""
        made = []
        groups = learners_at_a_time(rounds)
        total, done = sum(len(group) for group in groups), 0
        for learners in groups:
            observation, seen, _ = several_rounds(rounds, learners)
            case = self.case(observation, seed, rounds=seen, learners=learners)
            report = part_of(progress, done, len(learners), total)
            made.append(self._rebuilt(case, observation.input_shape, report))
            done += len(learners)
        examples, confidence = (
            torch.cat([getattr(one, name) for one in made]) for name in ("examples", "confidence")
        )
        return Reconstructions(examples, confidence)

    def _rebuilt(self, case: Case, shape: tuple[int, ...], progress: Progress | None) -> Reconstructions:
        if len(shape) != 3:
            raise ValueError(
                f"observation.input_shape: must be (C, H, W), only images are reconstructed, got {shape}"
            )

        def invert_some(rows: Tensor, tick: Callable[[], None]) -> Inversion:
            return self._inverted(case, shape, rows, tick)

        answered = case.rounds[0].answered
        rows = torch.arange(len(answered), device=answered.device)
        parts = torch.split(rows, self._size(case, shape, rows))
        found = in_turn(parts, [len(part) for part in parts], self.iterations, invert_some, progress)
        examples = torch.cat([one.unknowns.asked for one in found])
        sure = -torch.cat([one.loss for one in found])
        return Reconstructions(examples, sure[:, None].expand(examples.shape[:2]))

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return scores, the reconstruction nearest to each target, and the statistics `distance` and `loss`.

        The loss is the minimized objective, total variation included. A target's result depends on the seed, its
        learner and the target itself; other targets in the same chunk affect only the last bits. Raises `ValueError`
        if shapes do not fit, the observation lacks what `knows` requires, or a chunk needs more memory than is
        allowed.
        """
        return self.answers(self.case(observation, seed, targets), targets, progress)

    def answers(self, case: Case, targets: Targets, progress: Progress | None) -> Answers:
        """Return the answers of a call, for targets that fit the case."""
        if not len(targets.examples):
            return Answers(torch.empty(0), torch.empty_like(targets.examples))

        def answer(places: Tensor, tick: Callable[[], None]) -> Answers:
            return self._of_chunk(case, targets.at(places), tick)

        parts = self._parts(case, targets)
        counts = [len(torch.unique(targets.rows[places])) for places in parts]
        return joined(parts, in_turn(parts, counts, self.iterations, answer, progress))

    def parts(self, observation: Observation, targets: Targets) -> Sequence[Tensor]:
        """Return the indices of the targets that are computed together, see `Divisible`; raises as a call does."""
        return self._parts(self.case(observation, 0, targets), targets)

    def _parts(self, case: Case, targets: Targets) -> Sequence[Tensor]:
        if not len(targets.rows):
            return ()
        rows, of = torch.unique(targets.rows, return_inverse=True)
        size = self._size(case, tuple(targets.examples.shape[1:]), rows)
        everywhere = torch.arange(len(of), device=of.device)
        return [everywhere[of // size == number] for number in range(int(of.max()) // size + 1)]

    def _size(self, case: Case, shape: tuple[int, ...], rows: Tensor) -> int:
        """Return how many of the learners `rows` are inverted at a time."""
        short = self.model_copy(update={"iterations": 1})

        def try_one() -> Inversion:
            return short._inverted(case, shape, rows[:1], lambda: None)

        return self.chunk_size(try_one, len(rows), rows.device)

    def _of_chunk(self, case: Case, targets: Targets, tick: Callable[[], None]) -> Answers:
        """Invert every learner that has targets, and score each target by its nearest reconstruction."""
        rows, of = torch.unique(targets.rows, return_inverse=True)
        found = self._inverted(case, tuple(targets.examples.shape[1:]), rows, tick)
        made = found.unknowns.asked
        rebuilt = Reconstructions(made, made.new_zeros(made.shape[:2]))
        distance, place = nearest(rebuilt, replace(targets, rows=of))
        return Answers(-distance, made[of, place], {"distance": distance, "loss": found.loss[of]})

    def _inverted(self, case: Case, shape: tuple[int, ...], rows: Tensor, tick: Callable[[], None]) -> Inversion:
        """Return the inversion of the learners `rows (T,)`, whose images have this `shape`."""
        problem = case.problem
        given = None if case.known is None else case.known[rows].float()
        drawn = start_random(sum(self.unknown_images(problem)), shape, case.learners[rows], case.seed)
        asked, other = drawn[:, : problem.images_of()], drawn[:, problem.images_of() :]
        start = Unknowns(asked, other if given is None else None, self.unknown_labels(problem, rows))
        return invert(problem, case.views(rows, shape), start, given, None, self.schedule(), tick)
