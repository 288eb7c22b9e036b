"""A defense of your own, and what the span attack finds with and without it."""

from pydantic import BaseModel, ConfigDict

from metaleak.deploy import attack_run, run_experiment


class Coarse(BaseModel):
    """Sends each entry of the meta-gradient rounded to a multiple of `step` times its tensor's largest entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    place: str = "shared"
    step: float = 0.5

    def __call__(self, tensors, random):
        steps = {name: (value.abs().max() * self.step).clamp(min=1e-12) for name, value in tensors.items()}
        return {name: (value / steps[name]).round() * steps[name] for name, value in tensors.items()}


if __name__ == "__main__":
    base = {"data": "digits", "task": {"ways": 3}, "partition": {"learners": 20}, "server": {"rounds": 3}}
    for number, defenses in enumerate([[], ["own_defense:Coarse"]]):
        run = run_experiment(
            {**base, "model": {"name": "mlp", "hidden": [64]}, "defenses": defenses}, f"runs/own-{number}"
        )
        found = attack_run(run, "span", trust=True, targets={"members": 60, "non_members": 200})
        print(f"{defenses or 'no defense'}: AUC {found.evaluation.auc.value:.3f}")
