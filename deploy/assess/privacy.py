"""The epsilon that a defense promises and the one that an attack proves, and the size of a learner's message."""

import math

import torch

from metaleak.attacks.evaluation.empirical_epsilon import (
    epsilon_lower_bound,
    gaussian_epsilon_lower_bound,
    one_run_lower_bound,
)
from metaleak.clients.federation import Federation
from metaleak.defenses import Accounted, Defense, ExampleMechanism, bytes_sent, noise_of
from metaleak.defenses.cost import dense_bytes
from metaleak.deploy.assess.truth import Truth
from metaleak.deploy.audits.audit import Audit
from metaleak.deploy.results.schema import Cost, Privacy

CONFIDENCE = 0.95
_DELTA = 1e-5


def measured_privacy(
    federation: Federation, releases: int, truth: Truth, scores: torch.Tensor, together: bool, whole: int
) -> Privacy:
    """Return what the federation's defenses promise after `releases` messages, and what `scores (T,)` prove.

    `whole` is the number of messages of the whole run. Of several guarantees the best one counts, since other
    defenses before or after a mechanism do not weaken it. Targets of one learner share its noise. Where the server
    saw learners `together`, in a mean, all targets share all noise; then only `one_run` can be computed, and the
    lower bound is 0.
    """
    accounted, delta, gaussian = min(_promised(federation, releases), default=(None, _DELTA, False))
    accounted_run, _, _ = min(_promised(federation, whole), default=(None, _DELTA, False))
    shared = torch.zeros_like(truth.learner) if together else truth.learner
    member = truth.member.numpy()
    kinds = (epsilon_lower_bound, *((gaussian_epsilon_lower_bound,) if gaussian else ()))
    bounds, ceilings = (
        [bound(told, member, delta=delta, confidence=CONFIDENCE, groups=shared.numpy()) for bound in kinds]
        for told in (scores.numpy(), member.astype(float))
    )
    return Privacy(
        accounted=accounted,
        delta=delta,
        lower_bound=bounds[0],
        gaussian_lower_bound=bounds[1] if gaussian else None,
        confidence=CONFIDENCE,
        accounted_run=accounted_run,
        ceiling=ceilings[0],
        gaussian_ceiling=ceilings[1] if gaussian else None,
        one_run=one_run_lower_bound(scores.numpy(), member, delta=delta, confidence=CONFIDENCE),
    )


def with_audit(privacy: Privacy, audit: Audit | None) -> Privacy:
    """Return `privacy` with what an audit of the whole run proves, and the epsilon accounted for the same set."""
    if audit is None:
        return privacy
    return privacy.model_copy(update={"audited": audit.lower_bound, "accounted_audited": audit.accounted})


def _promised(federation: Federation, releases: int) -> list[tuple[float, float, bool]]:
    """Return epsilon and delta of each finite guarantee, and whether it is that of a Gaussian mechanism."""
    return [
        (epsilon, defense.delta, _gaussian(defense))
        for defense in federation.defenses
        if isinstance(defense, Accounted) and math.isfinite(epsilon := defense.epsilon_after(releases))
    ]


def _gaussian(defense: Defense) -> bool:
    """Return whether a defense's guarantee promises to be that of Gaussian mechanisms.

    See `Modeled`, and `ExampleMechanism`.
    """
    if isinstance(defense, ExampleMechanism):
        return True
    noise = noise_of(defense)
    return (
        defense.place == "shared"
        and noise is not None
        and noise.law == "gaussian"
        and noise.deviation > 0
        and not noise.relative
    )


def message_cost(federation: Federation) -> Cost:
    """Return the bytes of one learner's message with the federation's defenses, without Flower's envelope."""
    shared = federation.shared(federation.initial_parameters())
    shapes = {name: tuple(value.shape) for name, value in shared.items()}
    return Cost(bytes_per_learner=bytes_sent(federation.defenses, shapes), dense_bytes=dense_bytes(shapes))
