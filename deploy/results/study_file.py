"""The configuration of a study of pretraining, in the form in which reports compare runs."""

from collections.abc import Mapping
from typing import Any

STUDY_FILE = "study.yaml"


def described_study(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study `plain` (parsed YAML) with its private finetuning and truncated answers as `defenses`.

    The settings of a single finetuning are moved to the key `finetuning`, without its private steps, which become a
    defense. Several finetunings, and keys that a study does not have, are kept as they are.
    """
    described = dict(plain)
    defenses: list[dict[str, Any]] = []
    finetunings = described.get("finetunings")
    if isinstance(finetunings, Mapping) and len(finetunings) == 1:
        (finetuning,) = finetunings.values()
        if isinstance(finetuning, Mapping):
            del described["finetunings"]
            described["finetuning"] = {key: value for key, value in finetuning.items() if key != "private"}
            if isinstance(private := finetuning.get("private"), Mapping):
                defenses.append({**private, "name": "private-finetuning"})
    queries = described.get("queries")
    if isinstance(queries, Mapping):
        described["queries"] = {key: value for key, value in queries.items() if key != "access"}
        if (access := queries.get("access", "all")) != "all":
            defenses.append({"name": "cut-answers", "shown": access})
    return {**described, "defenses": defenses}
