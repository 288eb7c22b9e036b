"""Selection: what is named leaves, the rest does not."""

import pytest
import torch
from pydantic import ValidationError

from metaleak.defenses import Costed, RandomSource, Selection

TENSORS = {name: torch.full((2, 3), float(size)) for size, name in enumerate(["conv1.weight", "head.weight"], 1)}
TENSORS["head.bias"] = torch.ones(3)


@pytest.mark.parametrize(
    ("names", "sent"),
    [
        (("head.*",), {"head.weight", "head.bias"}),
        (("*.bias",), {"head.bias"}),
        (("conv?.weight", "head.bias"), {"conv1.weight", "head.bias"}),
        (("*",), set(TENSORS)),
    ],
)
def test_only_what_is_named_leaves(names, sent):
    selection = Selection(names=names)
    result = selection(TENSORS, RandomSource.of(0))
    for name, value in TENSORS.items():
        assert torch.equal(result[name], value if name in sent else torch.zeros_like(value))
    shapes = {name: tuple(value.shape) for name, value in TENSORS.items()}
    assert isinstance(selection, Costed)
    assert selection.bytes_sent(shapes) == 4 * sum(TENSORS[name].numel() for name in sent)


def test_the_head_alone_is_what_nobody_needs_to_ask_for():
    assert Selection() == Selection(names=("head.*",))


def test_what_is_not_sent_is_zero_even_where_it_was_no_number():
    sent = Selection()({"body": torch.tensor([float("nan")]), "head.bias": torch.ones(1)}, RandomSource.of(0))
    assert sent["body"].tolist() == [0.0]


def test_names_that_select_nothing_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^names: body\.\* select none of conv1\.weight, head\.weight, head\.bias$"):
        Selection(names=("body.*",))(TENSORS, RandomSource.of(0))
    with pytest.raises(ValidationError):
        Selection(names=())
