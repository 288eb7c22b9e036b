"""Your own images, in one folder per class, as 32 x 32 pixels in color. Usage: own_images.py FOLDER"""

import sys

from metaleak.deploy import attack_run, run_experiment

if __name__ == "__main__":
    experiment = {
        "data": {"name": "folder", "path": sys.argv[1], "size": 32},
        "task": {"ways": 2, "shots": 1, "queries": 1},
        "partition": {"learners": 4, "held_out": 0.2},
        "model": {"name": "lenet"},
        "server": {"rounds": 2},
        "evaluation": {"tasks": 4, "queries": 2},
    }
    run = run_experiment(experiment, "runs/own-images")
    found = attack_run(run, "query", targets={"members": 4, "non_members": 4}, iterations=5)
    print(f"AUC {found.evaluation.auc.value:.3f}")
