"""The record of any Flower app, attacked from a file that states what the adversary knows."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from flower_apps.fedavg import MEAN, STD, run_app
from PIL import Image

from metaleak.clients.datasets import EmbeddedMNIST
from metaleak.deploy.cli import main
from metaleak.deploy.report.page import write_report


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    truth = run_app(folder / "record", clients=4, fewest=20, most=40)
    outsiders = np.random.default_rng(3).permutation(truth.outsiders).tolist()
    asked = [(example, learner, 1) for learner, held in truth.members.items() for example in held]
    asked += [(example, learner, 0) for learner in truth.members for example in outsiders[learner * 30 :][:30]]
    write(folder / "candidates.csv", ("example", "learner", "member"), asked)
    write(folder / "unknown.csv", ("example", "learner"), [row[:2] for row in asked])
    write(folder / "own.csv", ("example",), [(example,) for example in outsiders[1000:2000]])
    return folder


def app_file(folder, name="app.yaml", **changes):
    plain = {
        "model": "flower_apps.networks:MLP",
        "rule": {"name": "fedavg", "batch": 16, "rate": 0.1},
        "holds": "weights",
        "normalize": {"mean": [MEAN], "std": [STD]},
        "data": "mnist-5k",
        "candidates": "candidates.csv",
        **changes,
    }
    path = folder / name
    path.write_text(yaml.safe_dump({key: value for key, value in plain.items() if value is not None}))
    return path


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["attack", *map(str, arguments)])
    output = capsys.readouterr()
    return ended.value.code, output.out, output.err


def test_members_are_found_and_written_down(folder, capsys):
    code, out, _ = said(capsys, folder / "record", "span", "--app", app_file(folder))
    assert code == 0
    assert out.startswith("span: AUC 1.000 (95 % interval 0.970 to 1.000) on 120 members and 120 non-members")
    written = json.loads((folder / "attacks" / "span" / "attack.json").read_text())
    assert written["evaluation"]["auc"]["value"] == 1.0
    scores = pq.read_table(folder / "attacks" / "span" / "scores.parquet").to_pandas()
    assert set(scores.columns) >= {"learner", "round", "example", "member", "score"}
    assert len(scores) == 240


def test_an_attack_that_only_reconstructs_scores_candidates_by_the_nearest_reconstruction(tmp_path, capsys):
    truth = run_app(tmp_path / "record", clients=6, fewest=1, most=1)
    asked = [(example, learner, 1) for learner, held in truth.members.items() for example in held]
    asked += [(example, learner, 0) for learner in truth.members for example in truth.outsiders[learner % 90 :][:20]]
    write(tmp_path / "candidates.csv", ("example", "learner", "member"), asked)
    code, out, _ = said(capsys, tmp_path / "record", "layer-by-layer", "--app", app_file(tmp_path))
    assert code == 0
    assert out.startswith("layer-by-layer: AUC 1.000")
    scores = pq.read_table(tmp_path / "attacks/layer-by-layer/scores.parquet").to_pandas()
    assert scores.distance[scores.member == 1].max() < 0.1 < scores.distance[scores.member == 0].min()


def test_without_the_truth_there_are_plain_scores(folder, capsys):
    file = app_file(folder, "unknown.yaml", candidates="unknown.csv")
    code, out, _ = said(capsys, folder / "record", "span", "--app", file, "--as", "unknown")
    assert code == 0
    assert "the candidates' file does not state who is a member, so the scores are not evaluated" in out
    scores = pq.read_table(folder / "attacks" / "unknown" / "scores.parquet").to_pandas()
    assert "member" not in scores.columns
    said(capsys, folder / "record", "span", "--app", app_file(folder), "--as", "known")
    known = pq.read_table(folder / "attacks" / "known" / "scores.parquet").to_pandas()
    assert scores.score.tolist() == known.score.tolist()


def test_the_report_shows_the_attacks_on_the_record(folder, capsys):
    said(capsys, folder / "record", "span", "--app", app_file(folder), "--as", "shown")
    unknown = app_file(folder, "unknown.yaml", candidates="unknown.csv")
    said(capsys, folder / "record", "span", "--app", unknown, "--as", "not-compared")
    page = write_report(folder).read_text()
    assert "the shown attack tells members from non-members almost always: AUC 1.000" in page
    assert "not-compared: not evaluated" in page
    assert "record of another app" in page


def test_examples_can_be_asked_about_by_the_names_of_their_files(folder, tmp_path, capsys):
    images, labels = EmbeddedMNIST().load().examples, EmbeddedMNIST().load().labels
    with (folder / "candidates.csv").open(newline="") as file:
        asked = [(int(row["example"]), row["learner"], row["member"]) for row in csv.DictReader(file)]
    names = {}
    for example in sorted({row[0] for row in asked}):
        names[example] = f"{int(labels[example])}/{example}.png"
        path = tmp_path / "images" / names[example]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[example, 0].numpy()).save(path)
    write(tmp_path / "named.csv", ("example", "learner", "member"), [(names[row[0]], *row[1:]) for row in asked])
    data = {"name": "folder", "path": str(tmp_path / "images")}
    file = app_file(folder, "named.yaml", data=data, candidates=str(tmp_path / "named.csv"))
    code, out, _ = said(capsys, folder / "record", "span", "--app", file, "--as", "named")
    assert (code, "AUC 1.000" in out, "on 120 members" in out) == (0, True, True)
    write(tmp_path / "named.csv", ("example", "learner"), [("0/none.png", 0)])
    code, _, error = said(capsys, folder / "record", "span", "--app", file, "--as", "misnamed")
    assert (code, "line 2: example must be a number or the name of an example, got '0/none.png'" in error) == (
        1,
        True,
    )


def test_an_attack_that_requires_what_is_not_stated_is_refused(folder, capsys):
    code, _, error = said(capsys, folder / "record", "alignment", "--app", app_file(folder))
    assert code == 1
    assert "alignment requires own examples, which the threat model does not include" in error
    light = ("--set", "samples=100", "--set", "shadows=4", "--set", "stand_ins=1")
    file = app_file(folder, "own.yaml", own="own.csv")
    code, out, _ = said(capsys, folder / "record", "alignment", "--app", file, *light)
    assert code == 0
    assert out.startswith("alignment: AUC ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "flower_apps.networks:Missing"}, "model.name: flower_apps.networks:Missing"),
        ({"modle": "x"}, "modle: unknown key 'modle', did you mean 'model'?"),
        ({"data": "mnist-6k"}, "data.name: unknown name 'mnist-6k', did you mean 'mnist-5k'"),
        ({"normalize": {"mean": [0.1], "std": [0.0]}}, "normalize.std.0: Input should be greater than 0"),
    ],
)
def test_a_wrong_description_is_wrong_usage_in_one_line(folder, capsys, changes, message):
    code, _, error = said(capsys, folder / "record", "span", "--app", app_file(folder, "wrong.yaml", **changes))
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("example", "client"), (1, 2)],
            "must have the columns example, learner, member (if known), has example, client",
        ),
        ([("example", "learner"), (1, "x")], "line 2: learner must be a number, got 'x'"),
        ([("example", "learner"), (1, 9)], "learner 9 is not one of those that answered: 0, 1, 2, 3"),
        ([("example", "learner"), (5000, 1)], "an example must be a place in the data, 0 to 4999"),
        ([("example", "learner")], "has no rows"),
        ([("example", "learner", "member"), (1, 1, 2)], "member must be 1 or 0"),
    ],
)
def test_wrong_candidates_are_named(folder, capsys, rows, message):
    write(folder / "wrong.csv", rows[0], rows[1:])
    file = app_file(folder, "wrong-candidates.yaml", candidates="wrong.csv")
    code, _, error = said(capsys, folder / "record", "span", "--app", file, "--as", "wrong")
    assert code == 1
    assert message in error
    assert not (folder / "attacks" / "wrong").exists()


def test_the_adversarys_own_images_are_no_candidates(folder, capsys):
    write(folder / "own-wrong.csv", ("example",), [((folder / "unknown.csv").read_text().split()[1].split(",")[0],)])
    file = app_file(folder, "own-wrong.yaml", own="own-wrong.csv")
    code, _, error = said(capsys, folder / "record", "span", "--app", file, "--as", "wrong")
    assert code == 1
    assert "is a candidate too: the adversary's own images are no learner's" in error
