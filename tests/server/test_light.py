"""The recorder and the record's reader go into any Flower app: they load nothing that they could do without."""

import json
import subprocess
import sys

import pytest

# What `pip install metaleak` brings, and what is loaded with nothing.
BASE = ("flwr", "numpy", "pyarrow", "metaleak")
REST = (
    "torch",
    "torchvision",
    "ray",
    "sklearn",
    "scipy",
    "matplotlib",
    "pydantic",
    "safetensors",
    "typer",
    "rich",
    "jinja2",
    "dp_accounting",
    "mlxtend",
    "PIL",
    "pandas",
    "yaml",
)
RECORDING = """
import sys
class Missing:
    def find_spec(self, name, *rest):
        if name in {missing!r}:
            raise ModuleNotFoundError("not installed", name=name)
sys.meta_path.insert(0, Missing())
{program}
import json
print(json.dumps(sorted(sys.modules)))
"""
APP = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.server.strategy import FedAvg as Classic
from flwr.serverapp.strategy import FedAvg
from metaleak.server import AGGREGATE, CuriousServer, MeanRecorder, Record, RecordError, RecordWriter, curious_grid
CuriousServer(FedAvg(), "never")
CuriousServer(Classic(), "never")
writer = RecordWriter({path!r}, holds="weights")
sent = writer.sent(1, dict(w=np.zeros(2)))
writer.reply(1, [3], "node", sent, dict(w=np.ones((1, 2))), metrics=dict(examples=[7]))
writer.flush()
record = Record({path!r})
assert record.received(1)[0] == [3] and record.metrics(1) == {{3: dict(examples=7)}} and record.holds == "weights"
"""


def loaded(program, missing=()):
    """Return the top-level modules that are loaded after a program ran where some are not installed."""
    source = RECORDING.format(missing=missing, program=program)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "module",
    [
        "metaleak.server",
        "metaleak.server.curious.curious_server",
        "metaleak.server.curious.mean_recorder",
        "metaleak.server.record.reader",
        "metaleak.server.record.writer",
    ],
)
def test_what_an_app_imports_loads_neither_torch_nor_ray(module):
    found = loaded(f"import {module}")
    assert not found & {"torch", "ray"}
    assert "metaleak" in found


def test_an_app_is_recorded_and_its_record_read_where_nothing_else_is_installed(tmp_path):
    program = APP.format(path="PATH").replace("'PATH'", f"__import__('pathlib').Path({str(tmp_path / 'record')!r})")
    # typer, rich and PyYAML are Flower's own needs.
    missing = [name for name in REST if name not in ("typer", "rich", "yaml")]
    assert not loaded(program, missing) & set(missing)
