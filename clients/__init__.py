"""Task-learners: private shards, few-shot models, meta-learning rules, and the Flower client that hosts them."""

from metaleak.clients.app import client_app
from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.federation import Federation
from metaleak.clients.learner import TaskLearner
from metaleak.clients.partition import Partition, TaskShape

__all__ = ["Episode", "Federation", "Parameters", "Partition", "TaskLearner", "TaskShape", "client_app"]
