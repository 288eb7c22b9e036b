"""A network of your own: any `torch.nn.Module` that takes images and returns logits."""

from torch import nn

from metaleak.deploy import attack_run, run_experiment


def network() -> nn.Module:
    """Return a network for images of 8 x 8 pixels and three classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(8 * 8, 64), nn.ReLU(), nn.Linear(64, 3))


if __name__ == "__main__":
    experiment = {
        "data": "digits",
        "task": {"ways": 3},
        "partition": {"learners": 20},
        "model": {"name": "own_model:network"},
        "server": {"rounds": 3},
    }
    run = run_experiment(experiment, "runs/own-model")
    found = attack_run(run, "span", trust=True, targets={"members": 60, "non_members": 200})
    print(f"AUC {found.evaluation.auc.value:.3f}")
