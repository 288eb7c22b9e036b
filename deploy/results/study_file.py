"""What a study of pretraining was, in the words in which reports compare runs."""

from collections.abc import Mapping
from typing import Any

STUDY_FILE = "study.yaml"


def described_study(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study `plain` (parsed YAML) with what protects the examples behind the start as `defenses`.

    Where there is one finetuning, it stands under `finetuning`, and its private steps among the defenses; so do
    answers of which not all can be seen. A study of several finetunings keeps them as they are. Whatever is not as a
    study has it is left as it is.
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
