"""Private sentences and a tiny transformer through the whole platform: one matrix shared, recorded and attacked."""

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.numpy import load_file
from workers_here import WorkersHere

from metaleak.clients.cohort import cohort_meta_gradients
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.config.suite import Suite
from metaleak.deploy.report.leaderboard import leaderboard
from metaleak.deploy.report.page import write_report
from metaleak.deploy.results.reading import read_suite
from metaleak.deploy.suites.benchmark import benchmark
from metaleak.server import Record

MATCHING = "metaleak.attacks.text.matching.text_matching:TextMatching"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
BASE = {
    "data": {"name": "metaleak.clients.datasets:MadeUpSentences", "length": 13},
    "model": {"name": "metaleak.clients.models:TinyBERT", "width": 64, "positions": 16},
    "rule": "fedsgd",
    "shares": [QUERY],
    "task": {"ways": 2},
    "partition": {"learners": 4},
    "server": {"rounds": 1},
    "evaluation": {"tasks": 2, "queries": 1},
    "engine": {"chunk": 1, "device": "cpu"},
    "attacks": [
        "metaleak.attacks.text.span_attack:TextSpan",
        "metaleak.attacks.text.membership:TextMembership",
        {
            "name": "metaleak.attacks.text.matching.text_matching:TextMatching",
            "steps": 4,
            "candidates": 3,
            "proposals": 3,
        },
    ],
    "targets": {"learners": 3, "members": 8, "non_members": 40},
}
NOISE = {"name": "noise", "scale": 3.0}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "suite"
    workers = WorkersHere()
    benchmark(Suite(name="text", base=BASE, grid={"defenses": [[], NOISE]}), path, workers=lambda settings: workers)
    return path


def test_sentences_are_rebuilt_from_one_matrix_and_hardly_under_noise(suite):
    rows = {(row["defense"], row["attack"].rpartition(":")[2]): row for row in leaderboard(read_suite(suite))}
    bare, noisy = (rows[defense, "TextSpan"] for defense in ("undefended", "shared noise, gaussian"))
    assert bare["measure"] == "tokens recovered"
    assert bare["value"] > noisy["value_high"]
    assert rows["undefended", "TextMembership"]["auc"] > 0.95
    matching = next(
        row for (defense, name), row in rows.items() if "TextMatching" in name and defense == "undefended"
    )
    # The lengths are known, and with them where sentences begin and end.
    assert matching["value"] > 0.2
    assert matching["knows"] == "labels, lengths"


def test_rouge_is_measured_and_the_report_shows_the_sentences(suite):
    undefended = next(run for run in read_suite(suite).runs.values() if not run.config["defenses"])
    attack = next(one for one in undefended.attacks if one.result.measured)
    names = [measure.name for measure in attack.result.measures]
    assert names[2:5] == ["ROUGE-1", "ROUGE-2", "ROUGE-L"]
    kept = load_file(undefended.path / "attacks" / attack.name / "reconstructions.safetensors")
    assert kept["truth"].shape == kept["reconstruction"].shape == (6, 13)
    page = write_report(suite).read_text()
    assert '<p class="tokens">' in page
    assert "<span>was</span>" in page


def test_the_record_holds_one_matrix_and_what_is_attacked_is_what_the_defense_left(suite):
    for run in read_suite(suite).runs.values():
        experiment = experiment_from({**BASE, "defenses": run.config["defenses"]}, "here")
        federation = experiment.federation()
        _, received = Record(run.path / "record").received(1)
        assert list(received) == [QUERY]
        learners = federation.learners([0, 1, 2, 3])
        sent, _ = cohort_meta_gradients(learners, federation.initial_parameters(), 1, chunk=1)
        assert torch.equal(torch.from_numpy(received[QUERY]), sent[QUERY])
        undefended = experiment_from(BASE, "here").federation().learners([0, 1, 2, 3])
        bare, _ = cohort_meta_gradients(undefended, federation.initial_parameters(), 1, chunk=1)
        assert torch.equal(bare[QUERY], sent[QUERY]) == (not run.config["defenses"])
