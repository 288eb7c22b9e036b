"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from local_grid import LocalGrid

README = (Path(__file__).parents[1] / "README.md").read_text()


def marked_blocks():
    return re.findall(r"<!-- tested by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL)


def test_the_plug_in_and_the_three_lines_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    client = ClientApp()

    @client.train()
    def train(message, context):
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    plug_in, reading, three_lines = marked_blocks()
    lines = [line for line in three_lines.splitlines() if line]
    assert len(lines) == 3
    names = {"my_initial_arrays": lambda: ArrayRecord({"w": Array(np.arange(6, dtype="f4"))})}
    exec(compile(plug_in, "README.md", "exec"), names)
    names["main"](LocalGrid(client, nodes=4), None)
    exec(compile(reading, "README.md", "exec"), names)
    assert capsys.readouterr().out == "weights dict_keys(['w']) {'server-round': 1} 1\n"
    exec(compile(three_lines, "README.md", "exec"), names)
    np.testing.assert_array_equal(names["received"]["w"], np.arange(6, dtype="f4"))
