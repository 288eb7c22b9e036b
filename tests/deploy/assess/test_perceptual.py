"""LPIPS stands beside PSNR and SSIM where its weights are, is not measured elsewhere, and can be insisted on."""

import shutil

import pytest
from local_grid import local_simulate

from metaleak.clients.datasets import MNIST, EmbeddedMNIST
from metaleak.deploy.assess.assessment import assess
from metaleak.deploy.assess.perceptual import perceptual_distance
from metaleak.deploy.config.plugins import Plugin
from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.report.page import write_report

SMALL = {
    "data": {"name": "mnist-5k"},
    "task": {"ways": 2, "shots": 1, "queries": 1},
    "partition": {"learners": 4},
    "model": {"name": "mlp", "hidden": [64]},
    "server": {"rounds": 1},
    "evaluation": {"tasks": 2, "queries": 2},
    "attacks": [],
    "targets": {"learners": 3},
}


def test_it_is_measured_where_the_folder_of_data_sets_has_the_weights(shared_data, tmp_path, monkeypatch):
    experiment = experiment_from(SMALL, "test")
    run = local_simulate(experiment, tmp_path / "run")
    monkeypatch.delenv("METALEAK_DATA", raising=False)
    names = [measure.name for measure in assess(run, experiment, Plugin(name="spear"), name="without").measured]
    assert names == ["PSNR", "mean squared error", "SSIM"]
    monkeypatch.setenv("METALEAK_DATA", str(shared_data))
    found = {measure.name: measure for measure in assess(run, experiment, Plugin(name="spear"), name="with").measured}
    assert list(found) == [*names, "LPIPS"]
    # SPEAR is exact on a batch of four.
    assert found["SSIM"].value == pytest.approx(1, abs=1e-3)
    assert found["LPIPS"].value == pytest.approx(0, abs=1e-3)
    page = write_report(run.path).read_text()
    assert "; SSIM 1.000, " in page
    assert "; LPIPS 0.000, " in page


def test_weights_are_looked_for_where_the_data_lie_and_where_all_data_sets_lie(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("METALEAK_DATA", str(tmp_path / "nowhere"))
    assert perceptual_distance(None, EmbeddedMNIST()) is None
    assert perceptual_distance(None, MNIST(data_dir=shared_data)) is not None
    assert perceptual_distance(False, MNIST(data_dir=shared_data)) is None
    shutil.copy(shared_data / "lpips_alexnet" / "lpips_v0.1_alexnet.npz", tmp_path)
    monkeypatch.setenv("METALEAK_DATA", str(tmp_path))
    assert perceptual_distance(True, EmbeddedMNIST()) is not None


def test_what_is_wanted_and_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEAK_DATA", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"^targets\.lpips: LPIPS was not found: .* lacks lpips_v0\.1_alexnet\.npz \(they are not",
    ):
        perceptual_distance(True, EmbeddedMNIST())
