"""A released model that is asked over HTTP."""

import json
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import torch
from torch import Tensor

_BYTES_A_NUMBER = 40
"""An upper bound for a number in JSON with its separators."""


class HTTPQuery:
    """A `Query` of a model behind a URL.

    Inputs are sent by POST as `{"inputs": [...]}`, as nested lists in the form of the data, images in [0, 1]. The
    answer must be `{"probabilities": [[...], ...]}`. Raises `ValueError` in one line for an answer that cannot be
    read, or that is longer than `classes` numbers per input can be.
    """

    def __init__(self, url: str, classes: int, timeout: float = 60.0) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"victim: must be an http or https URL, got {url!r}")
        self._url, self._classes, self._timeout = url, classes, timeout

    def predict(self, inputs: Tensor, /) -> Tensor:
        """Return the probabilities `(B, K)` for `inputs (B, ...)`."""
        body = json.dumps({"inputs": inputs.tolist()}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        most = 1000 + _BYTES_A_NUMBER * len(inputs) * max(self._classes, 10)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as reply:
                content = reply.read(most + 1)
        except urllib.error.HTTPError as error:
            raise ValueError(f"the server answered {error.code} {error.reason}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ValueError(f"the server did not answer: {getattr(error, 'reason', error)}") from None
        if len(content) > most:
            raise ValueError(f"the answer has more than {most} bytes")
        try:
            return torch.tensor(json.loads(content)["probabilities"], dtype=torch.float64)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError('the answer is not {"probabilities": [[...], ...]}') from None
