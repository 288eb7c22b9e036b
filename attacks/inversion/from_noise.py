"""Reconstruction from random images: what the classical gradient inversions do."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metaleak.attacks.attack import Answers, Progress, Reconstructions, Targets, joined
from metaleak.attacks.inversion.gradient_inversion import Inversion, Problem, Unknowns, invert
from metaleak.attacks.inversion.gradient_matching import GradientMatching, in_turn
from metaleak.attacks.inversion.image_space import pixels
from metaleak.attacks.inversion.starts import start_random
from metaleak.attacks.observation import Observation


class InversionFromNoise(GradientMatching):
    """The images of the set that the attack `asks` about, rebuilt from random ones.

    Each learner is inverted once, see `GradientMatching`, whatever is asked about it. Asked about membership, it
    scores a target by its distance to the nearest of the images that it rebuilt.
    """

    def reconstruct(self, observation: Observation, seed: int, progress: Progress | None = None) -> Reconstructions:
        """Return the set asked about of every learner; an image is as sure as its learner's loss is small.

        Raises `ValueError` when the observation lacks what `knows` says is known, or the shape of the images, or when
        a chunk needs more memory than it may take.
        """
        problem, known, shape = self.problem(observation), self.known_set(observation), observation.input_shape
        if len(shape) != 3:
            raise ValueError(f"reconstructs images (C, H, W), and the observation's examples have shape {shape}")

        def invert_some(rows: Tensor, tick: Callable[[], None]) -> Inversion:
            return self._inverted(observation, problem, known, shape, rows, seed, tick)

        one = next(iter(observation.gradients.values()))
        rows = torch.arange(len(one), device=one.device)
        parts = torch.split(rows, self._size(observation, problem, known, shape, rows))
        found = in_turn(parts, [len(part) for part in parts], self.iterations, invert_some, progress)
        examples = torch.cat([one.unknowns.asked for one in found])
        sure = -torch.cat([one.loss for one in found])
        return Reconstructions(examples, sure[:, None].expand(examples.shape[:2]))

    def __call__(
        self, observation: Observation, targets: Targets, seed: int, progress: Progress | None = None
    ) -> Answers:
        """Return scores, the image nearest to each target and the statistics `distance` and `loss`.

        The loss is of what was minimized, total variation included. A target's answer depends on the seed, its
        learner and itself, not on the targets beside it, but for the last bits, which the chunk decides. Raises
        `ValueError` when the shapes do not fit, when the observation lacks what `knows` says is known, or when a
        chunk needs more memory than it may take.
        """
        problem, known = self.checked(observation, targets)
        if not len(targets.examples):
            return Answers(torch.empty(0), torch.empty_like(targets.examples))

        def answer(places: Tensor, tick: Callable[[], None]) -> Answers:
            return self._answers(observation, problem, targets.at(places), known, seed, tick)

        parts = self.parts(observation, targets)
        counts = [len(torch.unique(targets.rows[places])) for places in parts]
        return joined(parts, in_turn(parts, counts, self.iterations, answer, progress))

    def parts(self, observation: Observation, targets: Targets) -> Sequence[Tensor]:
        """Return the places of the targets that are computed together, see `Divisible`; raises as a call does."""
        problem, known = self.checked(observation, targets)
        if not len(targets.rows):
            return ()
        rows, of = torch.unique(targets.rows, return_inverse=True)
        size = self._size(observation, problem, known, tuple(targets.examples.shape[1:]), rows)
        everywhere = torch.arange(len(of), device=of.device)
        return [everywhere[of // size == number] for number in range(int(of.max()) // size + 1)]

    def _size(
        self, observation: Observation, problem: Problem, known: Tensor | None, shape: tuple[int, ...], rows: Tensor
    ) -> int:
        """Return how many of the learners `rows` are inverted at a time."""
        short = self.model_copy(update={"iterations": 1})

        def try_one() -> Inversion:
            return short._inverted(observation, problem, known, shape, rows[:1], 0, lambda: None)

        return self.chunk_size(try_one, len(rows), rows.device)

    def _answers(
        self,
        observation: Observation,
        problem: Problem,
        targets: Targets,
        known: Tensor | None,
        seed: int,
        tick: Callable[[], None],
    ) -> Answers:
        """Invert every learner that is asked about, and answer with each target's nearest image."""
        rows, of = torch.unique(targets.rows, return_inverse=True)
        found = self._inverted(observation, problem, known, tuple(targets.examples.shape[1:]), rows, seed, tick)
        made = found.unknowns.asked
        # Targets one by one: each compares as many images as the asked set has.
        distances = torch.stack(
            [
                (made[row] - image).flatten(1).norm(dim=1)
                for row, image in zip(of.tolist(), targets.examples.float(), strict=True)
            ]
        )
        distance, nearest = distances.min(dim=1)
        return Answers(-distance, made[of, nearest], {"distance": distance, "loss": found.loss[of]})

    def _inverted(
        self,
        observation: Observation,
        problem: Problem,
        known: Tensor | None,
        shape: tuple[int, ...],
        rows: Tensor,
        seed: int,
        tick: Callable[[], None],
    ) -> Inversion:
        """Return what is found of the learners `rows (T,)`, whose images have this shape."""
        gradients = {name: value[rows] for name, value in observation.gradients.items()}
        given = None if known is None else known[rows].float()
        drawn = start_random(sum(self.unknown_images(problem)), shape, rows, seed)
        asked, other = drawn[:, : problem.images_of()], drawn[:, problem.images_of() :]
        start = Unknowns(asked, other if given is None else None, self.unknown_labels(problem, rows))
        inside = pixels(observation.parameters, gradients, shape)
        return invert(problem, inside, start, given, None, self.schedule(), tick)
