"""What do finetuned models reveal about the examples that they were pretrained on?"""

from pathlib import Path

from metaleak.deploy import run_study, study_from

if __name__ == "__main__":
    study = {
        "pool": {"data": "mnist-5k", "classes": [0, 1, 2], "examples": 100},
        "downstream": {"data": "mnist-5k", "classes": [5, 6, 7], "examples": 120},
        "model": {"name": "mlp", "hidden": [16]},
        "pretraining": {"epochs": 30, "batch": 25},
        "finetunings": {"head": {"training": {"epochs": 3}}},
        "models": 6,
        "victims": 3,
        "points": 60,
        "attacks": ["gaussian-ratio"],
    }
    results = run_study(study_from(study, "the study"), Path("runs/pretraining"), here=True)
    for name, found in results.items():
        print(f"{name}: AUC {found.evaluation.auc.value:.3f}")
