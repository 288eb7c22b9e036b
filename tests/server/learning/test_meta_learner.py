"""The meta-learner: samples by seed, averages by learner, refuses what does not fit."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from local_grid import LocalGrid

from metaleak.clients import Federation, Partition, TaskShape, client_app
from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.clients.datasets import Digits
from metaleak.clients.faults import Faults
from metaleak.clients.models import MLP
from metaleak.clients.rules import MAML, Reptile
from metaleak.clients.wire.answer import Refused, array_bytes, read_answer
from metaleak.server import CuriousServer, MetaLearner, OuterOptimizer, Record, RoundFailed
from metaleak.server.learning.checkpoint import read_checkpoint
from metaleak.server.learning.dispatch import Patience
from metaleak.server.learning.meta_learner import sample_size

LEARNERS = 20


@pytest.fixture(scope="module")
def federation():
    return Federation(
        seed=3,
        data=Digits(),
        task=TaskShape(ways=3),
        partition=Partition(learners=LEARNERS),
        model=MLP(hidden=(8,)),
        rule=MAML(),
    )


def arrays(parameters):
    return ArrayRecord({name: Array(value.numpy()) for name, value in parameters.items()})


def trained(federation, *, nodes=2, rounds=3, spoil=None, reports=None, **settings):
    grid = LocalGrid(client_app(federation), nodes=nodes, spoil=spoil)
    on_round = reports.append if reports is not None else None
    strategy = MetaLearner(LEARNERS, seed=3, on_round=on_round, **{"chunk": 4, "shares_per_node": 8, **settings})
    result = strategy.start(grid, arrays(federation.initial_parameters()), num_rounds=rounds)
    return {name: array.numpy() for name, array in result.arrays.items()}


def same(left, right):
    return all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_sgd_is_the_mean_of_the_learners_own_gradients(federation):
    start = federation.initial_parameters()
    result = trained(federation, rounds=1, optimizer=OuterOptimizer(name="sgd", rate=0.5))
    mine = [federation.learner(number).meta_gradient(start, 1)[0] for number in range(LEARNERS)]
    for name, value in start.items():
        mean = torch.stack([gradient[name] for gradient in mine]).mean(0)
        np.testing.assert_allclose(result[name], (value - 0.5 * mean).numpy(), rtol=1e-5, atol=1e-7)


def test_the_numbers_do_not_depend_on_how_many_nodes_there_are(federation):
    alone = trained(federation, nodes=1)
    assert same(alone, trained(federation, nodes=2))
    assert same(alone, trained(federation, nodes=7))


@pytest.mark.parametrize("faults", [Faults(), Faults(dropout=0.2, failure=0.2, straggler=0.2, deadline=1.0)])
def test_sums_that_nodes_make_give_the_same_bits(federation, faults):
    """From the second round on nobody looks at single gradients, and the traffic falls."""
    federation = dataclasses.replace(federation, faults=faults)
    sizes, single, summed = [], [], []

    def weigh(reply):
        sizes.append(array_bytes(reply.content))
        return reply

    alone = trained(federation, reports=single)
    assert same(alone, trained(federation, reports=summed, single_rounds=1, shares_per_node=1, spoil=weigh))
    for left, right in zip(single, summed, strict=True):
        assert (left.heard, left.learners, left.dropped, left.late, left.failed, left.refused) == (
            right.heard, right.learners, right.dropped, right.late, right.failed, right.refused
        )  # fmt: skip
        assert same(left.mean, right.mean)
    assert max(sizes[2:]) < max(sizes[:2])


def test_a_node_leaves_out_of_its_sum_what_is_not_finite(federation, monkeypatch):
    def ill(learners, parameters, round):
        gradients, _ = cohort_meta_gradients(learners, parameters, round, len(learners))
        for row, learner in enumerate(learners):
            if learner.learner == 5:
                gradients["head.bias"][row, 0] = torch.nan
        return iter([gradients])

    monkeypatch.setattr("metaleak.clients.app.cohort_in_parts", ill)
    single, summed = [], []
    assert same(trained(federation, reports=single), trained(federation, reports=summed, single_rounds=0))
    assert {(report.learners, report.refused) for report in (*single, *summed)} == {(LEARNERS - 1, 1)}


def infinite(reply):
    spoil_sum(reply, np.inf)


def of_other_shape(reply):
    reply.content["arrays"]["head.bias"] = Array(np.zeros((7, 3)))


def in_single_precision(reply):
    value = reply.content["arrays"]["head.bias"].numpy()
    reply.content["arrays"]["head.bias"] = Array(value.astype(np.float32))


def spoil_sum(reply, number):
    value = reply.content["arrays"]["head.bias"].numpy().copy()
    value[...] = number
    reply.content["arrays"]["head.bias"] = Array(value)


@pytest.mark.parametrize("change", [infinite, of_other_shape, in_single_precision])
def test_a_sum_that_does_not_fit_is_refused_with_all_its_learners(federation, change):
    reports = []
    result = trained(federation, rounds=2, spoil=spoiled(change), reports=reports, single_rounds=0)
    assert [(report.learners, report.refused) for report in reports] == [(LEARNERS - 4, 4)] * 2
    assert all(np.isfinite(value).all() for value in result.values())


def test_where_norms_are_limited_every_gradient_is_looked_at(federation):
    seen = []

    def look(reply):
        seen.append("summed" in reply.content["config"])
        return reply

    trained(federation, rounds=1, spoil=look, single_rounds=0, largest_norm=1e6)
    assert seen
    assert not any(seen)


def test_adam_keeps_its_state_across_rounds(federation):
    """Three Adam steps of torch itself on the recorded mean gradients give the same parameters."""
    reports = []
    trained(federation, reports=reports, optimizer=OuterOptimizer(name="adam", rate=0.01))
    start = federation.initial_parameters()
    leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    for report in reports:
        current = {name: value.detach().clone() for name, value in leaves.items()}
        gradients = [federation.learner(n).meta_gradient(current, report.round)[0] for n in range(LEARNERS)]
        for name, leaf in leaves.items():
            leaf.grad = torch.stack([gradient[name] for gradient in gradients]).mean(0)
        adam.step()
        # Adam divides by the gradient's own size, so where a gradient is almost zero its rounding decides.
        close = [torch.isclose(report.parameters[n], leaves[n], atol=1e-4).float().mean() for n in leaves]
        assert min(close) > 0.99


def test_sampling_depends_on_seed_and_round_alone():
    strategy = MetaLearner(100, fraction=0.1, seed=5)
    assert strategy.sample(1) == MetaLearner(100, fraction=0.1, seed=5).sample(1)
    assert len(set(strategy.sample(1))) == 10
    assert strategy.sample(1) != strategy.sample(2)
    assert strategy.sample(1) != MetaLearner(100, fraction=0.1, seed=6).sample(1)
    assert MetaLearner(100, fraction=0.001, seed=5).sample(1)
    for learners, fraction, size in [(10, 0.25, 3), (10, 0.35, 4), (10, 0.24, 2), (3, 0.1, 1), (7, 1.0, 7)]:
        assert len(MetaLearner(learners, fraction=fraction).sample(1)) == size == sample_size(learners, fraction)


def spoiled(change):
    """Return a spoiler of the reply that holds learner 0, which is one chunk of 4."""

    def spoil(reply: Message) -> Message:
        if not reply.has_error() and 0 in reply.content["config"]["learner-ids"]:
            change(reply)
        return reply

    return spoil


def not_finite(reply):
    reply.content["arrays"]["head.bias"] = Array(np.full(reply.content["arrays"]["head.bias"].shape, np.nan, "f4"))


def wrong_shape(reply):
    reply.content["arrays"]["head.bias"] = Array(np.zeros((2, 2), "f4"))


def missing_array(reply):
    del reply.content["arrays"]["head.bias"]


def extra_array(reply):
    reply.content["arrays"]["more"] = Array(np.zeros((2, 2), "f4"))


@pytest.mark.parametrize("change", [not_finite, wrong_shape, missing_array, extra_array])
def test_a_reply_that_does_not_fit_is_refused_and_counted(federation, change):
    reports = []
    result = trained(federation, rounds=2, spoil=spoiled(change), reports=reports)
    assert [(report.learners, report.refused) for report in reports] == [(LEARNERS - 4, 4)] * 2
    assert all(np.isfinite(value).all() for value in result.values())


def extra_record(reply):
    reply.content["more"] = ArrayRecord({"w": Array(np.zeros((4, 2), "f4"))})


def empty_record(reply):
    reply.content["more"] = ArrayRecord()


def other_record(reply):
    reply.content["others"] = reply.content["arrays"]
    del reply.content["arrays"]


def of_type(dtype):
    def change(reply):
        values = reply.content["arrays"]["head.bias"].numpy()
        reply.content["arrays"]["head.bias"] = Array(values.astype(dtype))

    return change


def ids_in_an_earlier_record(reply):
    """The ids of others in a config record that comes first, none in the one that is read."""
    told = reply.content["config"]
    del reply.content["config"]
    del told["learner-ids"]
    reply.content["a"] = ConfigRecord({"learner-ids": [4, 5, 6, 7]})
    reply.content["config"] = told


def one_row_not_finite(reply):
    name = "head.bias"
    values = reply.content["arrays"][name].numpy().copy()
    values[1, 0] = np.inf
    reply.content["arrays"][name] = Array(values)


def test_one_learner_that_is_not_finite_is_refused_alone(federation):
    reports = []
    ended = trained(federation, rounds=1, spoil=spoiled(one_row_not_finite), reports=reports)
    assert [(report.learners, report.refused) for report in reports] == [(LEARNERS - 1, 1)]
    start = federation.initial_parameters()
    others = [n for n in range(LEARNERS) if n != 1]
    mean = torch.stack([federation.learner(n).meta_gradient(start, 1)[0]["head.bias"] for n in others]).mean(0)
    # Adam's first step is the rate times the gradient's sign.
    np.testing.assert_allclose(ended["head.bias"], start["head.bias"] - 0.001 * mean.sign(), atol=1e-5)


def config_of(reply):
    return reply.content["config"]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("stranger", lambda c: c.update({"learner-ids": [0, 1, 2, 99]}), "learner 99 was not asked"),
        ("somebody else's", lambda c: c.update({"learner-ids": [4, 5, 6, 7]}), "learner 4 was not asked"),
        ("twice", lambda c: c.update({"learner-ids": [0, 1, 1, 2]}), "not ascending or are repeated"),
        ("in another order", lambda c: c.update({"learner-ids": [1, 0, 2, 3]}), "not ascending or are repeated"),
        ("too few", lambda c: c.update({"learner-ids": [0, 1]}), "has shape"),
        ("none", lambda c: c.pop("learner-ids"), "no learner ids"),
        ("text", lambda c: c.update({"learner-ids": ["0", "1"]}), "learner-ids are not a list of whole numbers"),
        ("floats", lambda c: c.update({"learner-ids": [0.0, 1.0, 2.0, 3.0]}), "not a list of whole numbers"),
        ("one number", lambda c: c.update({"learner-ids": 0}), "not a list of whole numbers"),
        ("missing and present", lambda c: c.update({"missing-ids": [2]}), "not ascending or are repeated"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_wrong_learner_ids_are_refused_in_one_clear_line(federation, caplog, name, change, reason):
    reports = []
    with caplog.at_level("WARNING", logger="metaleak"):
        trained(federation, rounds=1, spoil=spoiled(lambda reply: change(config_of(reply))), reports=reports)
    assert [(report.learners, report.refused) for report in reports] == [(LEARNERS - 4, 4)]
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert reason in said
    assert "\n" not in said


class Moody:
    """A rule that fails for one learner, whose episode it knows by its first image."""

    def __init__(self, federation, learner):
        self.bad = federation.learner(learner).episode(1).support_inputs[0]

    def meta_gradient(self, model, parameters, episode, perturb=None):
        if torch.equal(episode.support_inputs[0], self.bad):
            raise ValueError("this one is ill")
        return MAML().meta_gradient(model, parameters, episode, perturb)

    def adapt(self, model, parameters, episode, perturb=None):
        return MAML().adapt(model, parameters, episode, perturb)


def ids(value):
    return lambda reply: config_of(reply).update({"learner-ids": value})


@pytest.mark.parametrize(
    "change",
    [
        ids(["x"]),
        ids([float("inf")]),
        ids([4, 5, 6, 7]),
        ids([0, 1, 1, 2]),
        ids(list(range(10_000))),
        ids([0.0, 1.0, 2.0, 3.0]),
        ids([False, True]),
        lambda reply: config_of(reply).pop("learner-ids"),
        lambda reply: config_of(reply).update({"missing-ids": [99]}),
        ids_in_an_earlier_record,
        wrong_shape,
        missing_array,
        extra_array,
        extra_record,
        empty_record,
        other_record,
        of_type(np.float64),
        of_type(np.float16),
        of_type(np.int32),
        of_type(np.bool_),
        of_type(">f4"),
        not_finite,
    ],
)
def test_a_strangers_reply_neither_ends_the_run_nor_spoils_the_record(federation, tmp_path, change):
    reports = []
    grid = LocalGrid(client_app(federation), nodes=2, spoil=spoiled(change))
    strategy = MetaLearner(LEARNERS, seed=3, chunk=4, shares_per_node=8, on_round=reports.append)
    CuriousServer(strategy, tmp_path / "record").start(grid, arrays(federation.initial_parameters()), num_rounds=2)
    assert [(report.learners, report.refused) for report in reports] == [(LEARNERS - 4, 4)] * 2
    assert all(Record(tmp_path / "record").received(round)[0] == list(range(4, LEARNERS)) for round in (1, 2))


def test_the_record_holds_the_learners_that_the_mean_holds(federation, tmp_path):
    """A learner whose entries are not finite is in neither, the others of its reply are in both."""
    reports = []
    grid = LocalGrid(client_app(federation), nodes=2, spoil=spoiled(one_row_not_finite))
    strategy = MetaLearner(LEARNERS, seed=3, chunk=4, shares_per_node=8, on_round=reports.append)
    CuriousServer(strategy, tmp_path / "record").start(grid, arrays(federation.initial_parameters()), num_rounds=2)
    record = Record(tmp_path / "record")
    for report in reports:
        learners, gradients = record.received(report.round)
        assert list(report.heard) == learners == [n for n in range(LEARNERS) if n != 1]
        for name, mean in report.mean.items():
            np.testing.assert_allclose(gradients[name].mean(axis=0, dtype=np.float64), mean, rtol=1e-6, atol=1e-12)


def huge(reply):
    """Learner 1 sends finite numbers whose squares are not."""
    for name, array in list(reply.content["arrays"].items()):
        values = array.numpy().copy()
        values[1] = 3e38
        reply.content["arrays"][name] = Array(values)


def test_a_finite_reply_that_would_make_the_optimizers_state_infinite_fails_the_round(federation):
    reports = []

    def from_round_2(reply):
        if reports:
            huge(reply)

    with pytest.raises(RoundFailed, match=r"round 2: .* no longer finite .*largest_norm") as failed:
        trained(federation, rounds=5, spoil=spoiled(from_round_2), reports=reports)
    assert "\n" not in str(failed.value)
    assert [report.round for report in reports] == [1], "and the state of the round before is the last"
    state = {**reports[0].checkpoint.parameters, **reports[0].checkpoint.optimizer}
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("optimizer", [OuterOptimizer(), OuterOptimizer(name="sgd", rate=0.1, momentum=0.9)], ids=str)
def test_a_reply_above_the_largest_norm_is_refused_alone_and_recorded(federation, tmp_path, caplog, optimizer):
    reports = []
    grid = LocalGrid(client_app(federation), nodes=2, spoil=spoiled(huge))
    strategy = MetaLearner(
        LEARNERS, seed=3, chunk=4, shares_per_node=8, largest_norm=100, optimizer=optimizer, on_round=reports.append
    )
    with caplog.at_level("WARNING", logger="metaleak"):
        result = CuriousServer(strategy, tmp_path / "record").start(
            grid, arrays(federation.initial_parameters()), num_rounds=2
        )
    assert [(report.learners, report.refused) for report in reports] == [(LEARNERS - 1, 1)] * 2
    assert "round 1: refused: learner 1: its norm 7.02e+39 is above server.largest_norm 100" in caplog.text
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())
    assert Record(tmp_path / "record").received(1)[0] == list(range(LEARNERS))


def test_a_norm_that_nobody_exceeds_changes_no_bit(federation):
    assert same(trained(federation), trained(federation, largest_norm=1e6))


class Tempered(MLP):
    """An MLP with a temperature: a parameter without dimensions."""

    def initialize(self, input_shape, ways, generator):
        return {**super().initialize(input_shape, ways, generator), "temperature": torch.tensor(1.0)}

    def __call__(self, parameters, images):
        return super().__call__(parameters, images) * parameters["temperature"]


def test_a_parameter_without_dimensions_is_learned_too(federation):
    tempered = dataclasses.replace(federation, model=Tempered(hidden=(8,)))
    result = trained(tempered, rounds=2)
    assert result["temperature"].shape == ()
    assert result["temperature"] != 1.0


class Precise(Tempered):
    def initialize(self, input_shape, ways, generator):
        start = super().initialize(input_shape, ways, generator)
        return {**start, "temperature": start["temperature"].double()}


def test_a_parameter_in_double_precision_is_answered_and_recorded_in_it(federation, tmp_path):
    precise = dataclasses.replace(federation, model=Precise(hidden=(8,)))
    grid = LocalGrid(client_app(precise))
    strategy = CuriousServer(MetaLearner(LEARNERS, seed=3), tmp_path / "record")
    result = strategy.start(grid, arrays(precise.initial_parameters()), num_rounds=1)
    assert result.arrays["temperature"].numpy() != 1.0
    learners, gradients = Record(tmp_path / "record").received(1)
    assert learners == list(range(LEARNERS))
    assert {name: value.dtype.name for name, value in gradients.items()} == {
        name: "float64" if name == "temperature" else "float32" for name in gradients
    }


class OutOfMemory(Moody):
    def meta_gradient(self, model, parameters, episode, perturb=None):
        raise MemoryError("no more")


def test_a_node_out_of_memory_is_not_taken_for_ill_learners(federation):
    """Its learners are asked for again; one by one they would have other bits."""
    ill = dataclasses.replace(federation, rule=OutOfMemory(federation, 0))
    with pytest.raises(RoundFailed, match=r"no learner answered \(learners .*no more"):
        trained(ill, rounds=1, patience=Patience(recovery=0))


def test_a_reply_of_a_thousand_times_the_size_costs_no_memory_and_no_disk(federation, tmp_path):
    def bloated(reply):
        for name, array in list(reply.content["arrays"].items()):
            reply.content["arrays"][name] = Array(np.zeros((1000 * array.shape[0], *array.shape[1:]), "f4"))

    reports = []
    grid = LocalGrid(client_app(federation), nodes=2, spoil=spoiled(bloated))
    strategy = CuriousServer(
        MetaLearner(LEARNERS, seed=3, chunk=4, shares_per_node=8, on_round=reports.append), tmp_path / "record"
    )
    strategy.start(grid, arrays(federation.initial_parameters()), num_rounds=1)
    assert [(report.learners, report.refused) for report in reports] == [(LEARNERS - 4, 4)]
    assert Record(tmp_path / "record").received(1)[0] == list(range(4, LEARNERS))
    reply = grid.seen[1].content["arrays"]
    tracemalloc.start()
    with pytest.raises(Refused, match="has shape"):
        read_answer(
            grid.seen[1].content, range(4), {n: (np.dtype("f4"), tuple(a.shape[1:])) for n, a in reply.items()}
        )
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_learners_in_trouble_are_missing_and_change_nothing_for_the_others(federation):
    faults = Faults(dropout=0.2, failure=0.2, straggler=0.5, delay=10, deadline=5)
    troubled = dataclasses.replace(federation, faults=faults)
    absences = {n: faults.absence(3, 1, n) for n in range(LEARNERS)}
    reports = []
    result = trained(troubled, rounds=1, reports=reports, optimizer=OuterOptimizer(name="sgd", rate=1.0))
    (report,) = reports
    for kind in ("dropped", "late", "failed"):
        expected = sum(a is not None and a.kind == kind for a in absences.values())
        assert getattr(report, kind) == expected > 0
    present = [n for n, absence in absences.items() if absence is None]
    assert report.learners == len(present)
    start = federation.initial_parameters()
    mean = torch.stack([federation.learner(n).meta_gradient(start, 1)[0]["head.bias"] for n in present]).mean(0)
    np.testing.assert_allclose(result["head.bias"], start["head.bias"] - mean, rtol=1e-5, atol=1e-7)


def test_a_round_in_which_everybody_drops_out_changes_nothing_and_training_goes_on(federation):
    reports = []
    absent = dataclasses.replace(federation, faults=Faults(dropout=1.0))
    result = trained(absent, rounds=2, reports=reports)
    assert [report.dropped for report in reports] == [LEARNERS, LEARNERS]
    assert same(result, {name: value.numpy() for name, value in federation.initial_parameters().items()})


def test_a_learner_that_fails_does_not_take_its_cohort_with_it(federation, caplog):
    reports = []
    ill = dataclasses.replace(federation, rule=Moody(federation, 6))
    with caplog.at_level("WARNING", logger="metaleak"):
        trained(ill, rounds=1, reports=reports)
    assert [(report.learners, report.failed) for report in reports] == [(LEARNERS - 1, 1)]
    assert "learner 6: ValueError" in caplog.text


@pytest.mark.parametrize("rule", [MAML(), MAML(order=1), Reptile(inner_steps=2)], ids=str)
def test_one_node_a_learner_and_cohorts_give_the_same(federation, tmp_path, rule):
    """The same gradients to rounding, the same record, and the same bits where the arithmetic is the same."""
    everyone = dataclasses.replace(federation, rule=rule, faults=Faults(dropout=0.1, failure=0.1))
    records, reports, results = {}, {}, {}
    for name, nodes, settings in (
        ("cohorts", 2, {"chunk": 4}),
        ("one by one in cohorts", 2, {"chunk": 1}),
        ("five a node", 4, {"chunk": 1, "learners_per_node": 5}),
        ("a node each", LEARNERS, {"chunk": 1, "learners_per_node": 1}),
    ):
        reports[name] = []
        strategy = MetaLearner(LEARNERS, seed=3, on_round=reports[name].append, **settings)
        grid = LocalGrid(client_app(everyone), nodes=nodes)
        curious = CuriousServer(strategy, tmp_path / name)
        result = curious.start(grid, arrays(everyone.initial_parameters()), num_rounds=2)
        results[name] = {key: array.numpy() for key, array in result.arrays.items()}
        records[name] = Record(tmp_path / name)
    counts = {name: [(r.learners, r.dropped, r.failed, r.refused) for r in reports[name]] for name in reports}
    assert len({str(found) for found in counts.values()}) == 1
    first = records["a node each"].received(1)
    for name in ("one by one in cohorts", "five a node"):
        assert same(results[name], results["a node each"])
        for round in (1, 2):
            (learners, mine), (others, theirs) = (records[n].received(round) for n in (name, "a node each"))
            assert learners == others
            assert same(mine, theirs)
    learners, together = records["cohorts"].received(1)
    assert learners == first[0]
    for row in range(len(learners)):
        mine, alone = (np.concatenate([v[row].ravel() for v in g.values()]) for g in (together, first[1]))
        assert np.linalg.norm(mine - alone) <= 1e-6 * np.linalg.norm(alone)


def test_a_training_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(federation, tmp_path):
    for settings in (
        OuterOptimizer(name="adam", rate=0.01, half_life=3),
        OuterOptimizer(name="sgd", rate=0.1, momentum=0.9),
    ):
        reports = []
        whole = trained(federation, rounds=5, optimizer=settings, reports=reports)
        file = tmp_path / f"{settings.name}.safetensors"
        file.write_bytes(reports[1].checkpoint.content())
        again = trained(federation, rounds=5, optimizer=settings, resume_from=read_checkpoint(file))
        assert same(whole, again)


def test_a_round_without_any_answer_fails_with_the_reason(federation):
    def nothing(context):
        raise OSError("the data are not here")

    strategy = MetaLearner(LEARNERS, seed=3, patience=Patience(recovery=0))
    grid = LocalGrid(client_app(nothing), nodes=1)
    initial = arrays(federation.initial_parameters())
    with pytest.raises(RoundFailed, match=r"round 1: no learner answered \(.*the data are not here"):
        strategy.start(grid, initial, num_rounds=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learners": 0},
        {"learners": 5, "fraction": 0},
        {"learners": 5, "chunk": 0},
        {"learners": 5, "learners_per_node": 0},
        {"learners": 5, "largest_norm": 0},
        {"learners": 5, "largest_norm": float("nan")},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        MetaLearner(**wrong)


def test_the_rate_halves_in_its_half_life():
    steps = OuterOptimizer(name="sgd", rate=1.0, half_life=2).over({"w": torch.zeros(1)})
    positions = []
    for _ in range(5):
        steps.step({"w": -np.ones(1)})
        positions.append(steps.parameters["w"].item())
    moves = np.diff([0.0, *positions])
    np.testing.assert_allclose(moves, [0.5 ** (step / 2) for step in range(5)], rtol=1e-5)


def test_a_round_with_too_few_answers_for_a_guarantee_ends_before_its_mean_is_used(federation):
    reports = []
    grid = LocalGrid(client_app(federation), nodes=2, spoil=spoiled(huge))
    settings = {"largest_norm": 100, "least_learners": LEARNERS, "on_round": reports.append}
    strategy = MetaLearner(LEARNERS, seed=3, chunk=4, shares_per_node=8, **settings)
    with pytest.raises(RoundFailed, match=rf"round 1: {LEARNERS - 1} learners answered, .* the noise of {LEARNERS}"):
        strategy.start(grid, arrays(federation.initial_parameters()), num_rounds=2)
    assert not reports
