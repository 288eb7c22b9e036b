"""The grid of Ray actors: who gets which message, and what comes back when an actor is lost or nobody is free."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from ray.exceptions import RayActorError

from metaleak.deploy.engines import ray_grid
from metaleak.deploy.engines.ray_grid import AHEAD, RayGrid

APP = ClientApp()


@APP.train()
def train(message, context):
    value = float(message.content["arrays"]["w"].numpy()[0]) * message.content["config"]["factor"]
    return Message(RecordDict({"config": ConfigRecord({"value": value})}), reply_to=message)


class Pool:
    """In the place of Ray: actors in this process, which answer when `work` is called, or are lost."""

    def __init__(self):
        self.actors, self.stored, self.done = [], [], {}

    def remote(self, **_):
        return lambda kind: SimpleNamespace(remote=lambda app: self._started(kind(app)))

    def _started(self, actor):
        queue = []

        def asked(message, names, *places):
            queue.append((reference := object(), message, names, places))
            return reference

        handle = SimpleNamespace(actor=actor, queue=queue, run=SimpleNamespace(remote=asked))
        self.actors.append(handle)
        return handle

    def put(self, record):
        self.stored.append(record)
        return record

    def wait(self, references, num_returns, timeout):
        return [one for one in references if one in self.done][:num_returns], []

    def get(self, reference):
        found = self.done.pop(reference)
        if isinstance(found, Exception):
            raise found
        return found

    def work(self, number, error=None):
        """Let an actor answer its oldest message, or lose it and all others with an error."""
        queue = self.actors[number].queue
        for reference, message, names, places in queue[: None if error else 1]:
            self.done[reference] = error or self.actors[number].actor.run(message, names, *places)
        del queue[: None if error else 1]

    @property
    def load(self):
        return [len(actor.queue) for actor in self.actors]


@pytest.fixture
def pool(monkeypatch):
    made = Pool()
    monkeypatch.setattr(ray_grid, "ray", made)
    return made


def messages(count, ttl=60.0, value=3.0):
    arrays = ArrayRecord({"w": Array(np.array([value], np.float32))})
    return [
        Message(
            RecordDict({"arrays": arrays, "config": ConfigRecord({"factor": number})}),
            dst_node_id=10_000 + number,
            message_type=MessageType.TRAIN,
            ttl=ttl,
        )
        for number in range(count)
    ]


def test_an_actor_gets_its_next_message_ahead_once_it_has_answered(pool):
    grid = RayGrid(APP, nodes=8, actors=2)
    assert grid.at_once == 2 * AHEAD
    names = list(grid.push_messages(messages(6)))
    assert pool.load == [1, 1], "an actor that has not answered yet may have no machine"
    assert not list(grid.pull_messages(names))
    pool.work(0)
    (reply,) = grid.pull_messages(names)
    assert (reply.metadata.reply_to_message_id, reply.content["config"]["value"]) == (names[0], 0.0)
    assert pool.load == [AHEAD, 1]
    replies = {}
    for _ in range(4):
        for number, load in enumerate(pool.load):
            if load:
                pool.work(number)
        replies |= {one.metadata.reply_to_message_id: one for one in grid.pull_messages(names)}
    assert [replies[name].content["config"]["value"] for name in names[1:]] == [3.0, 6.0, 9.0, 12.0, 15.0]
    assert not list(grid.pull_messages(names)), "each reply once"


def test_the_arrays_of_a_round_are_stored_once(pool):
    grid = RayGrid(APP, nodes=4, actors=4)
    grid.push_messages(messages(4))
    assert len(pool.stored) == 1
    grid.push_messages(messages(1, value=4.0))
    for number in range(4):
        pool.work(number)
    grid.pull_messages([])
    assert len(pool.stored) == 2


def test_what_a_lost_actor_was_asked_comes_back_as_errors_and_others_go_on(pool):
    grid = RayGrid(APP, nodes=4, actors=2)
    names = list(grid.push_messages(messages(4)))
    pool.work(0, RayActorError())
    (lost,) = grid.pull_messages(names)
    assert lost.error.code == ErrorCode.UNKNOWN
    assert lost.metadata.reply_to_message_id == names[0]
    assert pool.load == [0, 1], "a new process takes a while"
    pool.work(1)
    assert [one.metadata.reply_to_message_id for one in grid.pull_messages(names)] == [names[1]]
    assert pool.load == [0, AHEAD]


def test_an_app_that_cannot_be_made_is_no_lost_process(pool):
    class Failed(RayActorError):
        actor_init_failed = True

    grid = RayGrid(APP, nodes=1, actors=1)
    names = list(grid.push_messages(messages(1)))
    pool.work(0, Failed())
    assert [one.error.code for one in grid.pull_messages(names)] == [ErrorCode.LOAD_CLIENT_APP_EXCEPTION]


def test_a_message_for_which_nobody_was_free_in_time_is_answered_with_an_error(pool, monkeypatch):
    grid = RayGrid(APP, nodes=2, actors=1)
    names = list(grid.push_messages(messages(2)))
    now = ray_grid.time.time()
    monkeypatch.setattr(ray_grid.time, "time", lambda: now + 100)
    pool.work(0)
    replies = {one.metadata.reply_to_message_id: one for one in grid.pull_messages(names)}
    assert replies[names[1]].error.code == ErrorCode.MESSAGE_UNAVAILABLE
