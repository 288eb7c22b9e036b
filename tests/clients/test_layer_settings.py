"""What a layer says of how it is called: how a kernel moves, and the numbers of its activation."""

import torch
import torch.nn.functional as F
from torch import nn

from metaleak.clients.models import LeNet, Sliding, TorchModule, layers_of
from metaleak.clients.randomness import keyed_generator


def test_how_a_kernel_moves_is_that_of_the_call() -> None:
    module = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=(2, 1), padding=1, dilation=2, groups=2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 4, 3, padding="same"),
        nn.ELU(0.5),
        nn.Conv2d(4, 4, 1, padding="valid"),
    )
    first, second, third = layers_of(
        TorchModule(module), dict(module.named_parameters()), torch.zeros(1, 4, 16, 16)
    ).layers
    assert first.sliding == Sliding((2, 1), (1, 1), (2, 2), 2)
    assert (second.sliding, third.sliding) == (None, Sliding())
    assert (first.constants, second.constants, third.constants) == ((0.2,), (0.5,), ())


def test_the_numbers_of_an_activation_keep_their_places_when_named() -> None:
    def constants(activation):  # type: ignore[no-untyped-def]
        def model(parameters: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = activation(F.linear(images, parameters["weight"]))
            return made

        return layers_of(model, {"weight": torch.ones(2, 3)}, torch.zeros(1, 3)).layers[0].constants

    assert constants(lambda z: F.softplus(z, threshold=30)) == (1.0, 30.0)
    assert constants(lambda z: F.softplus(z, threshold=30, beta=2)) == (2.0, 30.0)
    assert constants(lambda z: F.hardtanh(z, max_val=2.0)) == (-1.0, 2.0)
    assert constants(lambda z: F.leaky_relu(z, inplace=True)) == (0.01,)


def test_shipped_networks_call_with_keywords() -> None:
    model = LeNet(filters=2)
    found = layers_of(model, model.initialize((1, 16, 16), 3, keyed_generator("start")), torch.zeros(1, 1, 16, 16))
    assert [layer.sliding for layer in found.layers] == [
        *2 * [Sliding((2, 2), (2, 2))],
        Sliding((1, 1), (2, 2)),
        None,
    ]


def test_what_an_example_passes_before_the_first_layer_is_listed() -> None:
    def model(parameters: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        return F.linear(((images - 0.5) / 0.2).flatten(1), parameters["weight"])

    assert layers_of(model, {"weight": torch.zeros(3, 4)}, torch.zeros(1, 1, 2, 2)).before == ("sub", "div")
