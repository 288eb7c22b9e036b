"""The trial before a simulation: one learner is computed in every way that the rounds will use."""

import textwrap

import torch

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.federation import Federation
from metaleak.clients.models import Model
from metaleak.clients.rules import Rule, batch_meta_gradients, own_span_pays
from metaleak.deploy.errors import one_line

_OWN_SPAN_ERROR = 1e-3
"""The largest relative difference of a tensor's meta-gradient when it is computed in the span of the own images."""


def try_out(federation: Federation) -> None:
    """Compute one learner's meta-gradient, to find models and rules that cannot before any actor starts.

    Two learners are also computed at once, as rounds and held-out tasks do. Where rounds would compute in the span of
    a learner's images, the result is compared in float64, since the declaration of the model or the rule may be
    wrong. Raises `ValueError` in one line.
    """
    learner, parameters = federation.learner(0), federation.initial_parameters()
    episode = learner.episode(1)
    rule = federation.rule
    federation.shared(parameters)
    model, moving = federation.computed(parameters)
    try:
        learner.meta_gradient(parameters, 1)
    except Exception as error:
        raise ValueError(f"the model and the rule give no meta-gradient: {_inner(error)}") from error
    try:
        batch_meta_gradients(model, rule, moving, _twice(episode))
        images = federation.task.ways * (federation.task.shots + federation.task.queries)
        if own_span_pays(model, rule, moving, images):
            _compare_in_span(model, rule, moving, episode)
    except _LeavesSpan:
        raise
    except Exception as error:
        raise ValueError(f"the model and the rule cannot compute two learners at once: {_inner(error)}") from error


class _LeavesSpan(ValueError):
    """Raised when the meta-gradient differs in the span of the learner's images."""


def _compare_in_span(model: Model, rule: Rule, parameters: Parameters, episode: Episode) -> None:
    episode = Episode(*map(_doubled, episode))
    parameters = {name: _doubled(value) for name, value in parameters.items()}
    alone, _ = rule.meta_gradient(model, parameters, episode)
    together, _ = batch_meta_gradients(model, rule, parameters, _twice(episode))
    # Far above rounding errors, even of a model that computes a part in float32.
    least = _OWN_SPAN_ERROR**2 * max(float(value.norm()) for value in alone.values())
    for name, value in alone.items():
        if float((together[name][0] - value).norm()) > max(_OWN_SPAN_ERROR * float(value.norm()), least):
            raise _LeavesSpan(
                f"the meta-gradient of {name} differs when computed in the span of the learner's images: either the "
                "model does not use them only through its input_weight (are they normalized first?), or what the "
                "rule sends leaves their span, though it declares stays_in_span (does it use weight decay?)"
            )


def _twice(episode: Episode) -> Episode:
    return Episode(*(part.expand(2, *part.shape) for part in episode))


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _inner(error: Exception) -> str:
    """Return torch's own words in one line, with what they usually mean."""
    return (
        f"{textwrap.shorten(one_line(error), 200, placeholder=' …')} (torch.func must be able to differentiate it "
        "twice and to vectorize it: no changes in place of images or buffers, no random numbers, no decisions by "
        "values, no NumPy, no state kept between calls)"
    )
