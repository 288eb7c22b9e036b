"""Giving out work: all of it comes back once, whatever happens to the nodes."""

from types import SimpleNamespace

import pytest
from flwr.common.constant import ErrorCode

from metaleak.server.curious.watched_grid import WatchedGrid
from metaleak.server.learning.dispatch import Dispatch, Patience
from metaleak.server.learning.shares import Share, floating_shares, hosted_shares

SHARES = [Share(2 * place, (2 * place, 2 * place + 1)) for place in range(6)]
NODES = [10, 11, 12]


class ScriptedGrid:
    """A grid whose nodes do what `behavior(share, node, nth time)` says.

    That is `good`, `dies`, `raises`, `hangs` or `gone`.
    """

    def __init__(self, behavior):
        self.behavior = behavior
        self.asked = []
        self.pulled = []
        self.out = {}
        self.most_out = 0

    def push_messages(self, messages):
        ids = []
        for message in messages:
            share = message.share
            times = sum(asked == share for asked, _ in self.asked)
            does = self.behavior(share, message.node, times)
            self.asked.append((share, message.node))
            if does == "gone":
                continue
            name = f"message-{len(self.asked)}"
            self.out[name] = (share, does)
            ids.append(name)
        self.most_out = max(self.most_out, len(self.out))
        return ids

    def pull_messages(self, ids):
        replies = []
        for name in ids:
            share, does = self.out[name]
            if does == "hangs":
                continue
            del self.out[name]
            code = {"dies": ErrorCode.UNKNOWN, "raises": ErrorCode.CLIENT_APP_RAISED_EXCEPTION}.get(does)
            replies.append(
                SimpleNamespace(
                    share=share,
                    metadata=SimpleNamespace(reply_to_message_id=name),
                    has_error=lambda code=code: code is not None,
                    error=SimpleNamespace(code=code, reason=does),
                )
            )
            self.pulled.append(share)
        return replies


def ask(share, node, ttl):
    assert ttl > 0
    return SimpleNamespace(share=share, node=node)


def dispatched(behavior, shares=SHARES, rounds=1, patience=None, **settings):
    grid = ScriptedGrid(behavior)
    dispatch = Dispatch(patience or Patience(round=20, recovery=2, slow=0.05), **settings)
    results = [dict(dispatch.answers(grid, NODES, shares, ask)) for _ in range(rounds)]
    return grid, results[-1]


def test_every_share_comes_back_once_and_the_nodes_are_kept_busy_evenly():
    grid, results = dispatched(lambda *_: "good")
    assert set(results) == set(SHARES) == set(grid.pulled)
    assert len(grid.pulled) == len(SHARES)
    assert {node for _, node in grid.asked} == set(NODES)


def test_a_grid_that_knows_when_a_reply_comes_is_waited_for_and_not_polled():
    class Awaiting(ScriptedGrid):
        waits = 0

        def pull_messages(self, ids):
            return super().pull_messages(ids) if self.waits else []

        def await_replies(self, seconds, at_most):
            assert 0 < seconds <= at_most
            self.waits += 1

    grid = Awaiting(lambda *_: "good")
    results = dict(Dispatch(Patience(round=20)).answers(grid, NODES, SHARES, ask))
    assert set(results) == set(SHARES)
    assert grid.waits == 1


def test_the_next_message_is_out_before_a_reply_is_looked_at():
    grid = ScriptedGrid(lambda *_: "good")
    for looked_at, _ in enumerate(Dispatch(Patience(round=20)).answers(grid, NODES, SHARES, ask), start=1):
        assert len(grid.asked) == min(len(SHARES), len(NODES) + looked_at)


def test_the_work_of_a_node_that_dies_is_done_by_another_in_the_same_round():
    grid, results = dispatched(lambda share, node, times: "dies" if node == 11 else "good")
    assert all(not reply.has_error() for reply in results.values())
    assert any(node == 11 for _, node in grid.asked), "or the test shows nothing"


def test_a_place_that_answers_with_errors_while_its_process_starts_is_asked_again_with_patience():
    _, results = dispatched(lambda share, node, times: "dies" if times < 3 else "good", shares=SHARES[:2])
    assert all(not reply.has_error() for reply in results.values())


def test_work_that_was_lost_is_asked_for_twice_at_once_and_counts_once():
    """In a simulation one dead actor can sit on top of the idle ones for as long as single messages come."""
    asked = iter(["dies", "dies", "good"])

    grid, results = dispatched(lambda *_: next(asked), shares=SHARES[:1])
    assert not results[SHARES[0]].has_error()
    assert len(grid.asked) == 3
    assert len({node for _, node in grid.asked}) == 3
    assert grid.pulled == [SHARES[0]] * 3, "two errors and one answer"


def test_a_grid_that_gives_messages_to_living_processes_itself_is_asked_for_lost_work_once():
    asked = iter(["dies", "dies", "good"])
    grid = ScriptedGrid(lambda *_: next(asked))
    grid.at_once = 2
    results = dict(Dispatch(Patience(round=20)).answers(grid, NODES, SHARES[:1], ask))
    assert not results[SHARES[0]].has_error()
    assert grid.most_out == 1


def test_what_the_app_itself_raises_is_tried_twice_and_then_told():
    grid, results = dispatched(lambda share, node, times: "raises" if share == SHARES[2] else "good")
    assert results[SHARES[2]].error.reason == "raises"
    assert sum(share == SHARES[2] for share, _ in grid.asked) == 2


def test_what_hangs_is_asked_of_somebody_else_and_only_one_answer_is_pulled():
    def hangs_once(share, node, times):
        return "hangs" if share == SHARES[3] and times == 0 else "good"

    grid, results = dispatched(hangs_once)
    assert set(results) == set(SHARES)
    assert results[SHARES[3]] is not None
    first, second = [node for share, node in grid.asked if share == SHARES[3]]
    assert first != second
    assert grid.pulled.count(SHARES[3]) == 1


def test_a_share_whose_second_message_is_lost_too_is_asked_for_again():
    def hangs_twice(share, node, times):
        return "hangs" if share == SHARES[3] and times < 2 else "good"

    grid, results = dispatched(hangs_twice)
    assert results[SHARES[3]] is not None
    assert len({node for share, node in grid.asked if share == SHARES[3]}) == 3


@pytest.mark.parametrize("shares", [SHARES[:1], hosted_shares([0], learners_per_node=1)], ids=["floating", "hosted"])
def test_a_message_that_a_killed_node_forgot_is_asked_again_though_nothing_was_answered_yet(shares):
    patience = Patience(round=120, recovery=0.2, slow=0.05)
    grid, results = dispatched(
        lambda share, node, times: "hangs" if times == 0 else "good", shares=shares, patience=patience
    )
    assert results[shares[0]] is not None
    assert len(grid.asked) == 2


def test_a_second_answer_does_not_stay_in_flowers_store():
    late = {"hangs": True}

    def hangs_once(share, node, times):
        return "hangs" if share == SHARES[3] and times == 0 and late.pop("hangs", False) else "good"

    grid = ScriptedGrid(hangs_once)
    dispatch = Dispatch(Patience(round=20, slow=0.05))
    dict(dispatch.answers(grid, NODES, SHARES, ask))
    (left,) = grid.out
    grid.out[left] = (SHARES[3], "good")
    assert len(dict(dispatch.answers(grid, NODES, SHARES, ask))) == len(SHARES)
    assert not grid.out


def test_a_host_that_stays_away_costs_its_patience_once():
    shares = hosted_shares([0, 1, 2], learners_per_node=1)
    grid = ScriptedGrid(lambda share, node, times: "gone" if node == 11 else "good")
    dispatch = Dispatch(Patience(round=20, recovery=1.0))
    tries = []
    for _ in range(3):
        before = len(grid.asked)
        results = dict(dispatch.answers(grid, NODES, shares, ask))
        tries.append([node for _, node in grid.asked[before:]].count(11))
        assert [reply is None for reply in results.values()].count(True) == 1
    assert tries[0] > 1
    assert tries[1:] == [1, 1]


def test_a_round_ends_in_time_and_says_who_is_missing():
    patience = Patience(round=0.5, slow=60)
    _, results = dispatched(lambda share, *_: "hangs" if share == SHARES[5] else "good", patience=patience)
    assert [share for share, reply in results.items() if reply is None] == [SHARES[5]]


def test_a_node_that_has_left_is_passed_over():
    _, results = dispatched(lambda share, node, times: "gone" if node == 10 else "good")
    assert all(reply is not None and not reply.has_error() for reply in results.values())


def test_only_so_many_messages_are_out_at_once():
    grid, _ = dispatched(lambda *_: "good", in_flight=2)
    assert grid.most_out == 2
    grid, _ = dispatched(lambda *_: "good")
    assert grid.most_out == 3


def test_as_many_are_out_as_keep_all_processes_of_a_grid_busy(monkeypatch):
    monkeypatch.setattr("metaleak.server.learning.dispatch.IN_FLIGHT", 2)
    grid = ScriptedGrid(lambda *_: "good")
    grid.at_once = 5
    dict(Dispatch(Patience(round=20)).answers(WatchedGrid(grid), range(10), SHARES, ask))
    assert grid.most_out == 5


def test_hosted_learners_are_asked_only_of_their_host():
    shares = hosted_shares([0, 1, 2, 5], learners_per_node=2)
    assert [(share.first, share.learners, share.host) for share in shares] == [
        (0, (0, 1), 0),
        (2, (2,), 1),
        (3, (5,), 2),
    ]
    grid, results = dispatched(lambda share, node, times: "dies" if times == 0 else "good", shares=shares)
    assert set(results) == set(shares)
    assert {(share.host, node) for share, node in grid.asked} == {(0, 10), (1, 11), (2, 12)}


@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
@pytest.mark.parametrize("wanted", [1, 8, 400])
@pytest.mark.parametrize("count", [1, 5, 64, 1000])
def test_shares_hold_every_learner_once_in_whole_chunks(chunk, wanted, count):
    sampled = list(range(3, 3 + 2 * count, 2))
    shares = floating_shares(sampled, wanted, chunk)
    assert [number for share in shares for number in share.learners] == sampled
    assert all(share.first % chunk == 0 for share in shares)
    assert max(len(share.learners) for share in shares) <= 64
    assert all(sampled[share.first] == share.learners[0] for share in shares)
