"""An attack of your own: is the image similar to a row of the first layer's gradient?"""

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict

from metaleak.attacks.attack import Answers
from metaleak.deploy import attack_run, run_experiment


class Likeness(BaseModel):
    """Scores a target by the largest cosine between the image and a row of its learner's gradient."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    asks: str = "query"
    requires: frozenset = frozenset()  # what its adversary must know besides what the server sees: nothing

    def __call__(self, observation, targets, seed, progress=None):
        rows = observation.gradients["layer1.weight"][targets.rows]  # (T, units, pixels)
        likeness = F.cosine_similarity(rows, targets.examples.flatten(1)[:, None], dim=2)
        return Answers(scores=likeness.abs().amax(1).double())


if __name__ == "__main__":
    setting = {"data": "digits", "task": {"ways": 3}, "partition": {"learners": 20}, "server": {"rounds": 3}}
    run = run_experiment(setting, "runs/attacked")
    found = attack_run(run, "own_attack:Likeness", targets={"members": 60, "non_members": 200})
    print(f"AUC {found.evaluation.auc.value:.3f}")
