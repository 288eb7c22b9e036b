"""LPIPS has the published values, and those of torch's own layers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_sample_image
from torchvision.models import alexnet

from metaleak.attacks.evaluation.lpips import Lpips
from metaleak.attacks.evaluation.similarity import similarity

PHOTOS = np.stack(
    [np.moveaxis(load_sample_image(name)[100:196, 200:280] / 255, -1, 0) for name in ("china.jpg", "flower.jpg")]
)
DIGITS = load_digits().images[:2].reshape(2, 1, 8, 8) / 16


@pytest.fixture(scope="module")
def lpips(shared_data):
    path = shared_data / "lpips_alexnet" / "lpips_v0.1_alexnet.npz"
    if not path.is_file():
        pytest.skip("the weights of LPIPS are not here")
    return Lpips.read(path)


def by_torch(lpips, ours, true):
    """Return the distance by torchvision's AlexNet, in float64."""
    layers = alexnet().features.double().eval()
    named = {name: torch.from_numpy(value) for name, value in lpips.weights.items()}
    layers.load_state_dict({name.removeprefix("features."): one for name, one in named.items() if name[0] == "f"})

    def features(images):
        shown = torch.from_numpy(images).expand(-1, 3, -1, -1)
        if min(images.shape[2:]) < 64:
            shown = F.interpolate(shown, size=(64, 64), mode="bilinear", align_corners=False)
        shift, scale = (torch.tensor(one)[:, None, None] for one in ((-0.03, -0.088, -0.188), (0.458, 0.448, 0.45)))
        values = (2 * shown - 1 - shift) / scale
        found = []
        for layer in layers:
            values = layer(values)
            if isinstance(layer, torch.nn.ReLU):
                # The next layer may work in place.
                found.append(F.normalize(values, dim=1))
        return found

    with torch.no_grad():
        pairs = zip(features(ours), features(true), strict=True)
        return sum(
            ((one - other) ** 2 * named[f"lin{place}.model.1.weight"]).sum(dim=1).mean(dim=(1, 2))
            for place, (one, other) in enumerate(pairs)
        ).numpy()


@pytest.mark.parametrize("images", [PHOTOS, PHOTOS[..., :28, :28], PHOTOS[..., :64, :64], DIGITS])
def test_it_equals_a_computation_by_torch(lpips, images):
    noise = np.random.default_rng(0).normal(0, 0.1, images.shape)
    found = lpips(images + noise, images)
    assert found == pytest.approx(by_torch(lpips, images + noise, images), rel=1e-4)
    assert lpips(images[:1], images[1:]) == pytest.approx(by_torch(lpips, images[:1], images[1:]), rel=1e-4)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), side=st.integers(1, 80))
def test_it_is_zero_for_equal_images_symmetric_and_grows_with_noise(lpips, seed, side):
    image = PHOTOS[:1, :, :side, :side]
    noise = np.random.default_rng(seed).normal(size=image.shape)
    noisy = np.concatenate([image + scale * noise for scale in (0.02, 0.1, 0.5)])
    found = lpips(noisy, image.repeat(3, axis=0))
    assert (np.diff(found, prepend=0) > 0).all()
    assert lpips(image.repeat(3, axis=0), noisy) == pytest.approx(found)
    assert lpips(noisy, noisy).tolist() == [0, 0, 0]


def test_gray_images_count_as_three_equal_channels(lpips):
    assert lpips(DIGITS[:1].repeat(3, axis=1), DIGITS[1:].repeat(3, axis=1)) == lpips(DIGITS[:1], DIGITS[1:])
    with pytest.raises(ValueError, match="LPIPS: images must have 1 or 3 channels, got 2"):
        lpips(DIGITS.repeat(2, axis=1), DIGITS.repeat(2, axis=1))


def test_it_is_measured_if_the_weights_are_given(lpips):
    _, measures = similarity("image", DIGITS[None, :1], DIGITS[None], lpips=lpips)
    found = measures[-1]
    gray = lpips(np.full_like(DIGITS[1:], 0.5), DIGITS[1:])
    assert (found.name, found.higher_leaks, found.headline) == ("LPIPS", False, False)
    assert found.value == pytest.approx(float(gray[0]) / 2)
    _, measures = similarity("image", np.zeros((1, 1, 2, 4, 4)), np.zeros((1, 1, 2, 4, 4)), lpips=lpips)
    assert "LPIPS" not in [measure.name for measure in measures]


def test_files_with_other_arrays_are_refused(lpips, tmp_path):
    path = tmp_path / "weights.npz"
    with pytest.raises(ValueError, match=r"weights\.npz is damaged"):
        Lpips.read(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"weights\.npz is damaged"):
        Lpips.read(path)
    np.savez(path, **{name: value for name, value in lpips.weights.items() if name != "features.0.bias"})
    with pytest.raises(ValueError, match="its arrays are not those of LPIPS with AlexNet"):
        Lpips.read(path)
    np.savez_compressed(path, **{**lpips.weights, "features.0.bias": np.zeros(10**6, np.float32)})
    with pytest.raises(ValueError, match="its arrays are not those of LPIPS with AlexNet"):
        Lpips.read(path)
    np.savez(path, **{**lpips.weights, "features.0.bias": np.full(64, np.nan, np.float32)})
    with pytest.raises(ValueError, match=r"features\.0\.bias must be finite float32 of the shape \(64,\)"):
        Lpips.read(path)
