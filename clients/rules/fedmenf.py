"""FedMeNF (Yun, Hong and Kim 2025): MAML whose outer loss measures the improvement by adaptation."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.func import grad_and_value

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model
from metaleak.clients.rules.maml import MAML
from metaleak.clients.rules.released_means import ReleasedMeans
from metaleak.clients.rules.rule import Perturb, cross_entropy
from metaleak.defenses import Reading


class FedMeNF(MAML):
    """MAML with the privacy-preserving loss L(theta; query) - `gamma` L(w; query), theta = adapt(w).

    Source: Yun et al. 2025, "FedMeNF: Privacy-Preserving Federated Meta-Learning for Neural Fields", where the second
    term keeps the initialization from fitting a learner's data. In the paper the loss is that of neural fields and a
    learner takes several local steps; here it is the cross-entropy, and a single step, the meta-gradient, is shared.
    `gamma: 0` is MAML. The rule gives no differential privacy guarantee.
    """

    stays_in_span: ClassVar[bool] = True

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def taken_back(self) -> float:
        """The fraction `gamma` of each query example's gradient at the sent parameters that is subtracted."""
        return self.gamma

    def meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, perturb: Perturb | None = None
    ) -> tuple[Parameters, Tensor]:
        """Return the gradient of the privacy-preserving loss, and the query loss after adaptation."""
        gradient, loss = super().meta_gradient(model, parameters, episode, perturb)
        before, _ = grad_and_value(
            lambda sent: cross_entropy(model, sent, episode.query_inputs, episode.query_labels)
        )(parameters)
        return self._without(gradient, before), loss

    @property
    def readings(self) -> dict[Reading, int]:
        """The means that MAML takes, and one more over the query set."""
        return {**super().readings, "query": 2}

    def released_meta_gradient(
        self, model: Model, parameters: Parameters, episode: Episode, means: ReleasedMeans
    ) -> tuple[Parameters, Tensor]:
        """Return the same values, computed from released means alone; the query set is read twice."""
        gradient, loss = super().released_meta_gradient(model, parameters, episode, means)
        query = episode.query_inputs, episode.query_labels
        return self._without(
            gradient, means.gradient(model, parameters, frozenset(gradient), *query, "query", 1)
        ), loss

    def _without(self, gradient: Parameters, before: Parameters) -> Parameters:
        return {name: value - self.gamma * before[name] for name, value in gradient.items()}
