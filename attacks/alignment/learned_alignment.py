"""Alignments with a learner's gradient as features, with a discriminant learned from shadow learners."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from metaleak.attacks.alignment.example_gradients import flattened, query_contributions, support_contributions
from metaleak.attacks.alignment.gradient_metric import Whitening, fit
from metaleak.attacks.alignment.stand_ins import SeenLearner, StandIns, expected_gradient, stand_ins_for
from metaleak.attacks.observation import Observation
from metaleak.attacks.seeding import generator_for, random_for
from metaleak.attacks.shadows.discriminant import Discriminant, fit_discriminant
from metaleak.attacks.shadows.own_examples import OwnExamples
from metaleak.attacks.shadows.shadow_learners import Shadows, in_means, shadow_learners
from metaleak.attacks.threat_model import Capability
from metaleak.defenses import RandomSource


@dataclass(frozen=True)
class Learned:
    """What an attack learns from shadow learners, and the adversary's images by use.

    `observation` has only classes of which the adversary has images. `for_metric` are the images for the metric and
    for stand-ins, `for_shadows` those that shadow learners hold. `known` are the features of shadows' members,
    `(M, F)`, and of non-members, `(N, F)`.
    """

    observation: Observation
    for_metric: OwnExamples
    for_shadows: OwnExamples
    metric: Whitening
    known: tuple[Tensor, Tensor]
    discriminant: Discriminant


class LearnedAlignment(BaseModel):
    """The features of attacks by alignment, which differ in the distributions that they compare these with.

    `knows`: `labels` (and classes), or `other`, which includes the images of the set that is not attacked.
    `stand_ins` sets of own images replace each unknown set; with `choices` above 1 that many times as many are drawn,
    and those with the meta-gradients most similar to the observed one are kept, at the cost of one meta-gradient per
    set for each learner and shadow. The metric is estimated from contributions of about `samples` own images; the
    fraction `components` of their principal directions counts as common. `shadows` learners are simulated.
    `knows_defenses`: shadow learners apply the learners' defenses, and the metric allows for their noise (an adaptive
    adversary).

    A support image has two kinds of features: its gradient as if it were a query image, since the parameters are
    adapted to it, and with `second_order` (much slower, one meta-gradient per image) the change of the meta-gradient
    when it is added to a stand-in. From this change the mean over `references` own images of the class is subtracted.
    Memory: `samples` times the number of parameters times about 20 bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asks: Literal["query", "support"] = "query"
    knows: Literal["labels", "other"] = "labels"
    stand_ins: Annotated[int, Field(ge=1, le=1000)] = 4
    choices: Annotated[int, Field(ge=1, le=1000)] = 1
    references: Annotated[int, Field(ge=1, le=1000)] = 4
    samples: Annotated[int, Field(ge=10, le=1_000_000)] = 2000
    components: Annotated[float, Field(ge=0, lt=1)] = 0.6
    shadows: Annotated[int, Field(ge=4, le=100_000)] = 32
    second_order: bool = True
    knows_defenses: bool = True

    @model_validator(mode="after")
    def _something_to_look_for(self) -> Self:
        if self._only_support and not self.second_order:
            raise ValueError("second_order: must be true where the query set is known, got false")
        return self

    @property
    def requires(self) -> frozenset[Capability]:
        """Labels, classes and own examples; the other set and the defenses depend on the fields."""
        known: frozenset[Capability] = frozenset({"labels", "classes", "own examples"})
        known |= {"other set"} if self.knows == "other" else set()
        return known | {"defenses"} if self.knows_defenses else known

    def learned(self, observation: Observation, seed: int, noise: RandomSource | None) -> Learned:
        """Return what is learned from shadow learners, independently of the targets."""
        own = OwnExamples.of(observation)
        if observation.classes is None:
            raise ValueError("observation.classes: the attack needs the class at each position, got None")
        observation = replace(observation, classes=own.present(observation.classes, generator_for(seed, "present")))
        # The learners' images are neither in the metric's samples nor stand-ins, so neither may be the shadows'.
        for_metric, for_shadows = own.parted()
        like = observation.classes
        if noise is not None:
            # Classes may not depend on who answers in this round, since shadows are the same in all rounds.
            like = own.tasks(observation.ways, self.shadows, generator_for(seed, "classes"))
        shadows = shadow_learners(
            replace(observation, classes=like), for_shadows, self.shadows, random_for(seed, "shadows"), noise
        )
        # The noise of single learners: relative to one image's contribution, that of a mean is the same.
        added = _noise(shadows)
        shadows = in_means(observation, shadows)
        metric = self._metric(observation, for_metric, shadows, added, seed)
        known = self._known(observation, for_metric, shadows, metric, seed)
        return Learned(observation, for_metric, for_shadows, metric, known, fit_discriminant(*known))

    @property
    def _only_support(self) -> bool:
        """Whether the query set's part is known and subtracted from the gradient, which leaves the support set's."""
        return self.asks == "support" and self.knows == "other"

    def _metric(
        self, observation: Observation, own: OwnExamples, shadows: Shadows, noise: Tensor, seed: int
    ) -> Whitening:
        """Return the metric, estimated from own images in place of the learners' images that hide the target.

        `noise (tensors,)` is the variance of the defenses' noise in each tensor of one learner's gradient.
        """
        assert observation.classes is not None
        real = [self.seen(observation, row) for row in range(min(len(shadows.classes), len(observation.classes)))]
        # Shadows must be part of the metric like real learners, or results would not carry over from them.
        learners = [*real, *self._seen_shadows(observation, shadows)]
        each = max(1, -(-self.samples // (len(learners) * observation.ways)))
        samples = []
        for number, learner in enumerate(learners):
            images = own.draw(learner.classes, each, generator_for(seed, "samples", number)).flatten(0, 1)
            positions = torch.arange(observation.ways, device=images.device).repeat_interleave(each)
            generator = generator_for(seed, "stand-ins", "samples", number)
            stand_ins = self.standing_in(learner, observation, own, generator)
            samples.append(self.contributions(observation, stand_ins, images, positions)[-1])
        shapes = tuple(tuple(value.shape) for value in observation.parameters.values())
        # The gradient is a mean of the query set's contributions and a sum of the support set's.
        count = observation.ways * observation.queries
        units = 1 / (observation.ways * observation.shots) if self._only_support else count
        return fit(torch.cat(samples), shapes, noise * units, self.components)

    def _known(
        self, observation: Observation, own: OwnExamples, shadows: Shadows, metric: Whitening, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return the features of shadow learners' members, `(M, F)`, and of non-members, `(N, F)`."""
        held = shadows.query if self.asks == "query" else shadows.support
        found: dict[bool, list[Tensor]] = {True: [], False: []}
        for number, learner in enumerate(self._seen_shadows(observation, shadows)):
            generator = generator_for(seed, "stand-ins", "shadow", number)
            stand_ins = self.standing_in(learner, observation, own, generator)
            members, others = held[number], shadows.others[number]
            images = torch.cat([members.flatten(0, 1), others.flatten(0, 1)])
            positions = torch.cat(
                [
                    torch.arange(observation.ways, device=part.device).repeat_interleave(part.shape[1])
                    for part in (members, others)
                ]
            )
            features = self.features(learner, observation, metric, stand_ins, images, positions)
            count = members.shape[0] * members.shape[1]
            found[True].append(features[:count])
            found[False].append(features[count:])
        return torch.cat(found[True]), torch.cat(found[False])

    def features(
        self,
        learner: SeenLearner,
        observation: Observation,
        metric: Whitening,
        stand_ins: StandIns,
        images: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """Return each image's alignments with the gradient of `learner`, tensor by tensor, `(B, F)`."""
        gradient = learner.gradient
        if self._only_support:
            gradient = gradient - learner.share * expected_gradient(observation, stand_ins)
        contributions = self.contributions(observation, stand_ins, images, positions)
        return aligned(metric, [metric.white(each) for each in contributions], metric.own(metric.white(gradient)))

    def contributions(
        self, observation: Observation, stand_ins: StandIns, images: Tensor, positions: Tensor
    ) -> list[Tensor]:
        """Return each image's contributions `(B, D)`, one tensor per kind; the last is that of the metric."""
        seen = observation.model, observation.rule, observation.parameters
        found = []
        if self.asks == "support" and self.second_order:
            # Most of the change is common to all images of the class, and is subtracted.
            usual = stand_ins.references
            both = torch.cat([usual.flatten(0, 1), images])
            every = torch.arange(len(usual), device=usual.device).repeat_interleave(usual.shape[1])
            places = torch.cat([every, positions])
            added = support_contributions(*seen, stand_ins.support, stand_ins.query, both, places)
            mean = added[: len(both) - len(images)].reshape(*usual.shape[:2], -1).mean(dim=1)
            found.append(added[len(both) - len(images) :] - mean[positions])
        if not self._only_support:
            found.append(query_contributions(*seen, stand_ins.support, images, positions))
        return found

    def seen(self, observation: Observation, row: int) -> SeenLearner:
        """Return the adversary's view of the learner in this row of the observation."""
        assert observation.classes is not None
        gradient = flattened({name: value[row : row + 1] for name, value in observation.gradients.items()})
        share = 1 / observation.mean_of
        if self.knows != "other":
            return SeenLearner(observation.classes[row], gradient, share=share)
        given = observation.known_support if self.asks == "query" else observation.known_query
        if given is None:
            raise ValueError("knows: 'other' needs the observation's known_support or known_query, which is None")
        known = given[row].reshape(observation.ways, -1, *given.shape[2:])
        return SeenLearner(observation.classes[row], gradient, known, share)

    def _seen_shadows(self, observation: Observation, shadows: Shadows) -> list[SeenLearner]:
        """Return the view of every shadow learner, which is one more learner in the observation if that is a mean."""
        share = 1 / (observation.mean_of + 1) if observation.mean_of > 1 else 1.0
        sets = shadows.support if self.asks == "query" else shadows.query
        known = list(sets) if self.knows == "other" else [None] * len(sets)
        gradients = torch.split(flattened(shadows.gradients), 1)
        return [
            SeenLearner(classes, gradient, other, share)
            for classes, gradient, other in zip(shadows.classes, gradients, known, strict=True)
        ]

    def standing_in(
        self, learner: SeenLearner, observation: Observation, own: OwnExamples, generator: torch.Generator
    ) -> StandIns:
        """Return stand-ins for the learner's sets, drawn from `own`; see `stand_ins_for`."""
        return stand_ins_for(
            learner, observation, own, self.asks, self.stand_ins, self.choices, self.references, generator
        )


def aligned(metric: Whitening, whites: list[Tensor], observed: Tensor) -> Tensor:
    """Return the alignments by tensor, `(B, F)`, of each of the `whites (B, D)` with `observed (1 or B, D)`.

    The whites are contributions in the metric's basis; `observed` is a gradient from `Whitening.own`.
    """
    return torch.cat([metric.by_tensor(white * observed) / metric.norm(white)[:, None] for white in whites], dim=1)


def _noise(shadows: Shadows) -> Tensor:
    """Return the variance of the noise that defenses of the shared gradient added to each tensor, `(tensors,)`."""
    return torch.stack(
        [(value - shadows.undefended[name]).square().mean() for name, value in shadows.gradients.items()]
    )
