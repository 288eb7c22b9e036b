"""Reptile (Nichol et al. 2018)."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules.released_means import ReleasedMeans
from metaleak.clients.rules.rule import (
    InnerRate,
    InnerSteps,
    Perturb,
    SupportEntry,
    all_examples,
    cross_entropy,
    inner_steps,
)
from metaleak.defenses import Reading


class Reptile(BaseModel):
    """Reptile: the direction of the total step of gradient descent on all of a learner's images.

    Source: Nichol et al. 2018.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stays_in_span: ClassVar[bool] = True

    inner_steps: InnerSteps = 5
    inner_rate: InnerRate = 0.1

    @property
    def support_enters(self) -> SupportEntry:
        """Both sets are one."""
        return "direct"

    def adapt(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> Parameters:
        """Return the parameters after adaptation to the episode's support set."""
        images, labels = episode.support_inputs, episode.support_labels
        return inner_steps(model, parameters, images, labels, self.inner_steps, self.inner_rate, perturb=perturb)

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, Tensor]:
        """Return (w - theta) / inner_rate, shaped like `parameters`, and the loss on all images at theta.

        theta are the parameters after `inner_steps` on the support and query set together, because Reptile has no
        split. The result equals the sum of the inner gradients.
        """
        images, labels = all_examples(episode)
        adapted = inner_steps(model, parameters, images, labels, self.inner_steps, self.inner_rate, perturb=perturb)
        gradient = {name: (value - adapted[name]) / self.inner_rate for name, value in parameters.items()}
        return gradient, cross_entropy(model, adapted, images, labels)

    @property
    def readings(self) -> Mapping[Reading, int]:
        """One mean over all images per inner step."""
        return {"all": self.inner_steps}

    def released_meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, means: ReleasedMeans
    ) -> tuple[Parameters, Tensor]:
        """Return the sum of the released means, and the loss on all images at theta."""
        images, labels = all_examples(episode)
        *_, adapted = means.descent(model, parameters, images, labels, self.inner_steps, self.inner_rate, "all")
        gradient = {name: (value - adapted[name]) / self.inner_rate for name, value in parameters.items()}
        return gradient, cross_entropy(model, adapted, images, labels)
