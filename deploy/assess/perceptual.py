"""The weights of the perceptual distance LPIPS, where the folder of data sets has them."""

from metaleak.attacks.evaluation.lpips import Lpips
from metaleak.clients.datasets.dataset import DataSet
from metaleak.clients.datasets.published import Published

_FOLDERS, _FILE = ("lpips_alexnet", "."), "lpips_v0.1_alexnet.npz"


def perceptual_distance(wanted: bool | None, data: DataSet) -> Lpips | None:
    """Return LPIPS, or `None` if it is not to be measured: always if `wanted`, never if that is false.

    If `wanted` is `None`, it is measured if its weights are found, in the folder of `data` or in the one that
    METALEAK_DATA names. Raises `ValueError` in one line for weights that are wanted and missing, and for damaged
    ones.
    """
    if wanted is False:
        return None
    places = [data, Published()] if isinstance(data, Published) else [Published()]
    for place in places:
        try:
            folder = place.find(_FOLDERS, (_FILE,))
        except ValueError:
            # A folder that does not exist matters to those alone who read their data from it.
            continue
        if folder is not None:
            return Lpips.read(folder / _FILE)
    if wanted:
        reason = str(Published().missing("LPIPS", _FOLDERS, (_FILE,)))
        raise ValueError(f"targets.lpips: {reason.replace('download: true fetches it', 'they are not fetched')}")
    return None
