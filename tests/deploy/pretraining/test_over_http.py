"""A released model over HTTP: asked within a budget and a rate, and attacked by its answers alone."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pyarrow.parquet
import pytest
import torch

from metaleak.attacks.pretraining.gaussian_ratio import GaussianRatio
from metaleak.attacks.pretraining.query import Metered, ask
from metaleak.attacks.pretraining.white_box import WhiteBoxLiRA
from metaleak.attacks.work import Work
from metaleak.deploy.pretraining.assessment import ask_victim, attack_victim
from metaleak.deploy.pretraining.command import attack_over_http
from metaleak.deploy.pretraining.examples import points, pool_of
from metaleak.deploy.pretraining.over_http import HTTPQuery
from metaleak.deploy.pretraining.reading import study_from
from metaleak.deploy.pretraining.shadow_models import answers_of, make_models

STUDY = {
    "pool": {"data": "mnist-5k", "classes": [0, 1, 2], "examples": 60},
    "downstream": {"data": "mnist-5k", "classes": [5, 6, 7], "examples": 60},
    "model": {"name": "mlp", "hidden": [8]},
    "pretraining": {"epochs": 3},
    "finetunings": {"head": {"training": {"epochs": 1}}},
    "models": 5,
    "points": 40,
    "attacks": ["metaleak.attacks.pretraining.gaussian_ratio:GaussianRatio"],
    "engine": {"device": "cpu"},
}


@contextmanager
def served(answer):
    """Serve `answer(inputs)`, the text of a reply, or a number of an error; yield the URL and the questions."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            asked.append(len(inputs))
            found = answer(torch.tensor(inputs))
            if isinstance(found, int):
                self.send_error(found)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(found.encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/predict", asked
    finally:
        server.shutdown()
        server.server_close()


def probabilities(inputs):
    return json.dumps({"probabilities": inputs.flatten(1)[:, :3].double().softmax(1).tolist()})


def read_column(path):
    return pyarrow.parquet.read_table(path)["score"].to_pylist()


INPUTS = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))


def test_answers_arrive_as_they_were_sent_and_are_counted():
    with served(probabilities) as (url, asked):
        metered = Metered(HTTPQuery(url, 3), budget=8, per_second=1000)
        found = ask(metered, INPUTS, 3, at_once=4)
    assert asked == [4, 4]
    assert metered.spent == 8
    assert torch.allclose(found.probabilities[:8], INPUTS[:8, :3].double().softmax(1))
    assert found.complaint == "predict: 2 of 10 queries have no answer (2: the budget of 8 queries is used up)"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda inputs: 503, "the server answered 503 Service Unavailable"),
        (lambda inputs: "{}", 'the answer is not {"probabilities"'),
        (lambda inputs: "[" * 5000, 'the answer is not {"probabilities"'),
        (lambda inputs: " " * 100_000, "the answer has more than"),
        (lambda inputs: json.dumps({"probabilities": [[0.5, 0.5]] * len(inputs)}), "returned 2 classes, not 3"),
    ],
)
def test_what_is_no_answer_is_one_line(answer, reason):
    with served(answer) as (url, _), pytest.raises(ValueError, match=r"^predict: 10 of 10 queries") as caught:
        ask(HTTPQuery(url, 3), INPUTS, 3)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_and_a_wrong_url_are_named():
    with pytest.raises(ValueError, match="the server did not answer"):
        HTTPQuery("http://127.0.0.1:9/x", 3, timeout=2).predict(INPUTS)
    with pytest.raises(ValueError, match="must be an http or https URL"):
        HTTPQuery("file:///etc/passwd", 3)


def test_a_victim_over_http_gets_the_scores_that_it_gets_here(tmp_path):
    study = study_from({**STUDY, "queries": {"budget": 30}}, "study")
    make_models(study, tmp_path / "models", Work())
    own = answers_of(study, tmp_path / "models", "head")[0].probabilities
    inputs = pool_of(study).inputs[points(study)]

    def remembered(given):
        rows = [int((inputs - one).abs().flatten(1).sum(1).argmin()) for one in given]
        return json.dumps({"probabilities": own[rows, 0].tolist()})

    class Opaque:
        def predict(self, given):
            return torch.tensor(json.loads(remembered(given))["probabilities"], dtype=torch.float64)

    with served(remembered) as (url, asked):
        lines = attack_over_http(study_from(STUDY, "study"), tmp_path, url)
    assert sum(asked) == 40
    assert lines == [f"{tmp_path}/victim/GaussianRatio.parquet: 40 points"]
    models = tmp_path / "models"
    whole = ask_victim(study_from(STUDY, "study"), Opaque())
    scores = attack_victim(study, models, "head", GaussianRatio(), whole, Work())
    assert (len(whole.examples), whole.complaint) == (40, "")
    assert read_column(tmp_path / "victim/GaussianRatio.parquet") == pytest.approx(scores.tolist())
    with pytest.raises(ValueError, match="needs answers of the pretrained model itself"):
        attack_victim(study, models, "head", WhiteBoxLiRA(), whole, Work())
    part = ask_victim(study, Opaque())
    assert torch.equal(part.examples, whole.examples[:30])
    assert "the budget of 30 queries is used up" in part.complaint
    assert attack_victim(study, models, "head", GaussianRatio(), part, Work()).isfinite().all()


def test_a_budget_is_counted_once_over_all_attacks_and_finetunings(tmp_path):
    several = {
        **STUDY,
        "finetunings": {"head": {"training": {"epochs": 1}}, "longer": {"training": {"epochs": 2}}},
        "attacks": [*STUDY["attacks"], "metaleak.attacks.pretraining.adapted_lira:AdaptedLiRA"],
        "queries": {"budget": 30},
    }
    study = study_from(several, "study")
    make_models(study, tmp_path / "models", Work())
    with served(probabilities) as (url, asked):
        lines = attack_over_http(study, tmp_path, url)
    assert sum(asked) == 30
    assert len(lines) == 4
    assert all("30 points" in line and "the budget of 30 queries is used up" in line for line in lines)
