"""The pages on Flower apps and on the record: their Python runs as it stands there."""

import numpy as np
import torch
import yaml
from flower_apps.fedavg import run_app
from flower_apps.networks import MLP
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from local_grid import LocalGrid
from pages import ROOT, blocks

from metaleak.deploy.config.app import read_app
from metaleak.server import Record


def marked_blocks(page):
    found = [block for block in blocks(ROOT / page) if block.note == "tested by tests/test_flower_app_page.py"]
    return [block.text for block in found]


def test_the_plug_in_and_the_three_lines_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    client = ClientApp()

    @client.train()
    def train(message, context):
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    plug_in, reading, _ = marked_blocks("docs/flower-app.md")
    (three_lines,) = marked_blocks("docs/record.md")
    lines = [line for line in three_lines.splitlines() if line]
    assert len(lines) == 3
    names = {"my_initial_arrays": lambda: ArrayRecord({"w": Array(np.arange(6, dtype="f4"))})}
    exec(compile(plug_in, "flower-app.md", "exec"), names)
    names["main"](LocalGrid(client, nodes=4), None)
    exec(compile(reading, "flower-app.md", "exec"), names)
    assert capsys.readouterr().out == "weights dict_keys(['w']) {'server-round': 1} 1\n"
    exec(compile(three_lines, "record.md", "exec"), names)
    np.testing.assert_array_equal(names["received"]["w"], np.arange(6, dtype="f4"))


def test_any_apps_record_is_attacked_by_the_lines_as_they_stand(tmp_path, capsys):
    truth = run_app(tmp_path / "record", clients=3, fewest=20, most=30)
    asked = [(example, learner, True) for learner, held in truth.members.items() for example in held]
    asked += [(example, learner, False) for learner in truth.members for example in truth.outsiders[:40]]
    examples, learners, member = zip(*asked, strict=True)
    names = {
        "record": Record(truth.record),
        "Net": MLP,
        "torch": torch,
        "asked_learners": learners,
        "images": truth.images[list(examples)],
        "labels": truth.labels[list(examples)],
        "member": member,
    }
    *_, ten_lines = marked_blocks("docs/flower-app.md")
    exec(compile(ten_lines, "flower-app.md", "exec"), names)
    assert capsys.readouterr().out.startswith("value=1.0 low=0.95")


def test_the_description_of_an_app_can_be_read_as_it_stands(tmp_path):
    (text,) = (block.text for block in blocks(ROOT / "docs/flower-app.md") if block.note.startswith("app.yaml"))
    (tmp_path / "app.yaml").write_text(text.replace("my_app:Net", "flower_apps.networks:MLP"))
    app = read_app(tmp_path / "app.yaml")
    assert app.rule.settings == {"epochs": 1, "batch": 16, "rate": 0.1}
    assert app.candidates == tmp_path / "candidates.csv"
    assert yaml.safe_load(text)["model"] == "my_app:Net"
