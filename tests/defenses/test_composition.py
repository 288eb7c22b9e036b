"""Defenses together: the same form goes on, the key alone decides, and the last one tells the cost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaleak.defenses import (
    NO_NOISE,
    Costed,
    Defense,
    GaussianMechanism,
    Modeled,
    Noise,
    Pruning,
    Quantization,
    RandomSource,
    SecureAggregation,
    Selection,
    Sign,
    bytes_sent,
    noise_of,
)
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from

SHARED = [
    Noise(scale=0.5),
    Noise(law="laplace", scale=0.5),
    GaussianMechanism(clip=1, noise_multiplier=1),
    GaussianMechanism(clip=1, epsilon=8, releases=3),
    Pruning(keep=0.3),
    Quantization(bits=4),
    Quantization(bits=4, stochastic=True),
    Sign(),
    Selection(),
    SecureAggregation(),
]
RANDOM = [one for one in SHARED if isinstance(one, Noise | GaussianMechanism)] + [
    Quantization(bits=4, stochastic=True)
]
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def applied(defenses, tensors, seed):
    random = RandomSource.of(seed)
    for defense in defenses:
        tensors = defense(tensors, random)
    return tensors


@given(
    defenses=st.lists(st.sampled_from(SHARED), min_size=1, max_size=4),
    shapes=st.lists(SHAPES, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_names_shapes_and_types_stay_and_the_key_decides(defenses, shapes, dtype, seed):
    source = torch.Generator().manual_seed(seed)
    tensors = {f"layer{i}": torch.randn(shape, generator=source, dtype=dtype) for i, shape in enumerate(shapes)}
    tensors["head.bias"] = torch.randn(3, generator=source, dtype=torch.float32)
    before = {name: value.clone() for name, value in tensors.items()}
    once, again = applied(defenses, tensors, seed), applied(defenses, tensors, seed)
    assert list(once) == list(tensors)
    for name, value in tensors.items():
        assert (once[name].shape, once[name].dtype) == (value.shape, value.dtype)
        assert once[name].isfinite().all()
        assert torch.equal(once[name], again[name])
        assert torch.equal(value, before[name]), "what goes in is not changed"


@pytest.mark.parametrize("defense", RANDOM, ids=repr)
def test_another_key_gives_other_numbers(defense):
    tensors = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0))}
    assert not torch.equal(applied([defense], tensors, 1)["w"], applied([defense], tensors, 2)["w"])


@pytest.mark.parametrize("defense", [one for one in SHARED if one not in RANDOM], ids=repr)
def test_a_defense_without_chance_draws_nothing(defense):
    random = RandomSource.of(0)
    before = random.generator.get_state()
    defense({"head.bias": torch.randn(50)}, random)
    assert torch.equal(random.generator.get_state(), before)
    assert torch.equal(random.normal((3,)), RandomSource.of(0).normal((3,)))


@pytest.mark.parametrize("defense", SHARED, ids=repr)
def test_all_of_them_are_defenses_and_their_own_configuration(defense):
    assert isinstance(defense, Defense)
    assert type(defense)(**defense.model_dump(mode="json")) == defense
    assert isinstance(defense, Costed) == isinstance(defense, Pruning | Quantization | Sign | Selection)


@pytest.mark.parametrize("defense", [one for one in SHARED if isinstance(one, Modeled) and one.noise()], ids=repr)
def test_a_defense_sends_what_it_says_and_the_noise_that_it_says(defense):
    tensors = {"head.w": 3 * torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    mean, noise = defense.without_noise(tensors)["head.w"], defense.noise()
    rest = applied([defense], tensors, 1)["head.w"] - mean
    unit = float(mean.square().mean().sqrt()) if noise.relative else 1.0
    if noise == NO_NOISE:
        assert float(rest.abs().max()) == 0
    else:
        assert float(rest.std()) == pytest.approx(noise.deviation * unit, rel=0.05)
        # The mean magnitude over the deviation tells the two laws apart.
        ratio = {"gaussian": (2 / torch.pi) ** 0.5, "laplace": 0.5**0.5}[noise.law]
        assert float(rest.abs().mean() / rest.std()) == pytest.approx(ratio, rel=0.02)


def test_a_defense_that_is_random_in_another_way_says_so():
    assert Quantization(bits=4, stochastic=True).noise() is None
    assert noise_of(SecureAggregation()) is None


def test_the_order_matters():
    tensors = {"w": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    pruning, sign = Pruning(keep=0.5), Sign()
    assert applied([pruning, sign], tensors, 0)["w"].tolist() == [1.75] * 4
    assert applied([sign, pruning], tensors, 0)["w"].tolist() == [2.5, 2.5, 0.0, 0.0]


def test_the_last_defense_tells_the_cost_of_all():
    shapes = {"body": (90,), "head.bias": (10,)}
    assert bytes_sent([], shapes) == 400
    assert bytes_sent([Noise(place="support"), SecureAggregation()], shapes) == 400
    assert bytes_sent([Pruning(keep=0.1), Noise()], shapes) == 400, "noise fills what pruning emptied"
    assert bytes_sent([Noise(), Selection(), SecureAggregation()], shapes) == 40
    assert bytes_sent([Selection(), Sign(), Noise(place="query")], shapes) == 13 + 8


def test_secure_aggregation_leaves_a_learners_tensors_alone():
    tensors = {"w": torch.randn(5)}
    assert SecureAggregation().place == "aggregate"
    assert SecureAggregation()(tensors, RandomSource.of(0)) is tensors


@pytest.mark.parametrize(
    ("name", "settings", "made"),
    [
        ("noise", {"scale": 0.5}, Noise(scale=0.5)),
        ("gaussian", {"clip": 1, "epsilon": 8}, GaussianMechanism(clip=1, epsilon=8)),
        ("pruning", {"keep": 0.1}, Pruning(keep=0.1)),
        ("quantization", {"bits": 4}, Quantization(bits=4)),
        ("sign", {}, Sign()),
        ("selection", {"names": ["head.*"]}, Selection()),
        ("secure-aggregation", {}, SecureAggregation()),
    ],
)
def test_an_experiment_file_names_each_and_can_be_written_out(name, settings, made):
    plugin = Plugin(name=name, **settings)
    assert plugin.build("defenses") == made
    assert Plugin(**plugin.resolved("defenses")).build("defenses") == made


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "gaussian", "clip": 1}, "defenses.0.epsilon: give either epsilon, for the whole run, or"),
        (
            {"name": "gaussian", "clip": 1, "noise_multiplier": 1, "releases": 2},
            "defenses.0.releases: is for",
        ),
        ({"name": "noise", "place": "aggregate"}, "defenses.0.place"),
        ({"name": "quantization", "bits": 40}, "defenses.0.bits"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(wrong, says):
    with pytest.raises(ValueError, match=says) as caught:
        experiment_from({"defenses": [wrong]}, "file.yaml")
    assert "\n" not in str(caught.value)
