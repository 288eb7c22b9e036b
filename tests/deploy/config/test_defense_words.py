"""Defenses in words."""

import pytest

from metaleak.deploy.config.defense_words import describe_strength

GAUSSIAN = {"name": "gaussian", "epsilon": 8.0}
NOISE = {"name": "noise", "place": "shared", "law": "laplace", "scale": 0.5}


@pytest.mark.parametrize(
    ("defenses", "said"),
    [
        ([], "undefended"),
        ([GAUSSIAN], "Gaussian mechanism, epsilon 8"),
        ([{**GAUSSIAN, "clip": 1.0}], "Gaussian mechanism, epsilon 8, clip 1"),
        ([{"name": "quantization", "bits": 4}], "quantization, bits 4"),
        ([{"name": "pruning", "keep": 0.1}], "pruning, part kept 0.1"),
        ([NOISE], "shared noise, laplace, scale 0.5"),
        ([GAUSSIAN, NOISE], "Gaussian mechanism, epsilon 8 + shared noise, laplace, scale 0.5"),
        ([{"name": "sign"}], "sign and mean magnitude alone"),
        (
            [GAUSSIAN, {"name": "pruning", "keep": 0.1}, {"name": "sign"}],
            "Gaussian mechanism, epsilon 8 + pruning, part kept 0.1 + sign and mean magnitude alone",
        ),
        ([{"name": "sign"}, GAUSSIAN], "sign and mean magnitude alone + Gaussian mechanism, epsilon 8"),
        ([{"name": "mine", "note": "a + b"}, NOISE], "mine, note a + b + shared noise, laplace, scale 0.5"),
    ],
)
def test_a_scale_is_called_what_it_is(defenses, said):
    assert describe_strength(defenses) == said
