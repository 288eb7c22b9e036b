"""The classical gradient inversions.

They were published for the plain gradient of a batch. Here they invert the output of any rule, with all of a
learner's unknown images as dummies, so their results on meta-gradients cannot be compared with published numbers.
"""

from typing import Any

from metaleak.attacks.inversion.from_noise import InversionFromNoise


def dlg_attack(**settings: Any) -> InversionFromNoise:
    """Return "deep leakage from gradients" (Zhu et al. 2019) with these fields of `InversionFromNoise`.

    As published: the squared distance over all parameters together, L-BFGS, no box constraint, no prior on images,
    soft labels that are optimized, too. Different here: the distance is divided by the squared observed norm, which
    affects only the first step of L-BFGS; there are 1 000 evaluations, one per step, with backtracking, in place of
    300 steps of up to 20 iterations without a line search; labels start uniform in place of random; the first trial
    changes a pixel by at most 0.1. Raises pydantic's `ValidationError` for an invalid setting.
    """
    published = {"loss": "squared", "optimizer": "lbfgs", "boxed": False, "knows": "nothing"}
    return InversionFromNoise(**{**published, "rate": 0.1, "iterations": 1000, **settings})


def inverting_gradients_attack(**settings: Any) -> InversionFromNoise:
    """Return "inverting gradients" (Geiping et al. 2020) with these fields of `InversionFromNoise`.

    As published: the cosine distance over all parameters together, total variation with weight 0.1 and 4 800 steps
    (the defaults of the official code; `breaching` has 0.2 and 24 000), known labels, Adam on the gradient's signs, a
    box constraint, the rate divided by ten after 3/8, 5/8 and 7/8 of the steps. Different here: pixels are not
    normalized, so the rate of 0.1 standard deviations becomes 0.025, and the start has mean 0.5 and standard
    deviation 0.25; the last point is returned in place of the best. Raises pydantic's `ValidationError` for an
    invalid setting.
    """
    published = {"loss": "cosine", "total_variation": 0.1, "signed": True, "decay": "steps", "iterations": 4800}
    return InversionFromNoise(**{**published, "rate": 0.025, **settings})


def cosine_tv_attack(**settings: Any) -> InversionFromNoise:
    """Return cosine matching with total variation, a baseline of Chen and Campbell (2021).

    As published: cosine distance, total variation with weight 0.01, known labels, Adam on the gradient itself, 4 800
    steps. Chosen here, as it is not stated there: the rate 0.025, its linear decay, and the box constraint. Raises
    pydantic's `ValidationError` for an invalid setting.
    """
    published = {"loss": "cosine", "total_variation": 0.01, "iterations": 4800}
    return InversionFromNoise(**{**published, "rate": 0.025, **settings})
