"""Rebuild private sentences from the gradient of one matrix of a small transformer."""

from metaleak.deploy import attack_run, run_experiment

if __name__ == "__main__":
    experiment = {
        "data": {"name": "sentences", "length": 13},
        "model": {"name": "tiny-bert", "width": 64, "positions": 16},
        "rule": "fedsgd",
        "shares": ["bert.encoder.layer.0.attention.self.query.weight"],
        "task": {"ways": 2},
        "partition": {"learners": 4},
        "server": {"rounds": 1},
        "evaluation": {"tasks": 2, "queries": 1},
        "engine": {"chunk": 1},
    }
    run = run_experiment(experiment, "runs/sentences")
    found = attack_run(run, "text-span", targets={"learners": 3})
    print(f"{found.headline.name}: {found.headline.value:.0%}")
