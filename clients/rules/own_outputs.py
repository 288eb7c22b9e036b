"""Private inner steps that keep a dense first layer's outputs at a learner's own images in place of its weight.

Where a learner uses the weight W of its inner steps at its own n images alone, and does not send it, noise N on W
enters what it sends only through N x. With an orthonormal basis Q of the images, N Q is a matrix `(h, n)` of
independent normal numbers of the same deviation, whatever the images are, since a rotation turns independent normal
numbers of one deviation into such numbers; and N x = (N Q) (Q^T x). So a learner that draws N Q computes with numbers
of the same joint distribution, given its images, as one that draws N, and what it sends has the same distribution.
The guarantee is the same, and h n numbers take the place of one for each entry of W.

Neither Q nor N is ever formed. For the images X `(n, pixels)` and L L^T = X X^T, the rows of L are the coordinates of
the images in some basis Q, X = L Q^T. The gradient of W is a sum of outer products d x^T; in the basis it is that of
d (Q^T x)^T, of the same norms, which are clipped alike. A noisy mean of these, `(h, n)`, times L^T is what it does to
the outputs. Contributions and noise use the same L, whose rounding is therefore that of the images.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metaleak.clients.episode import Episode, Parameters
from metaleak.clients.models import Model, dense_layers_of, input_weight_of
from metaleak.defenses import ExampleMechanism, has_isotropic_noise

_SQUARED_IMAGES_A_UNIT = 80
"""With more than sqrt(80 h) images for h units, their coordinates take longer to find than noise on the weight.

Measured for 64 to 512 units and images of 784 pixels; with 32 units it takes up to a tenth longer than without.
"""

_ADDED = 1e-13
"""The part of each image's squared norm that is added to it, so that repeated images have coordinates, too."""


@dataclass(frozen=True)
class OwnOutputs:
    """What private inner steps on an episode compute with.

    If `weight` is given, the parameters have in its place, `(h, n)`, its outputs at all n images of the episode, and
    the images of `episode` are unit vectors `(n,)`, each of which picks its own. Else both are as they are.
    """

    episode: Episode
    weight: str | None = None
    images: Tensor | None = None
    factor: Tensor | None = None

    @classmethod
    def of(
        cls,
        mechanism: ExampleMechanism,
        model: Model,
        parameters: Parameters,
        adapted: frozenset[str],
        episode: Episode,
    ) -> Self:
        """Return what to compute with where inner steps change the parameters `adapted`.

        These are outputs where the first layer is dense and among the adapted, where `mechanism` says that its noise
        is the same in every orthonormal basis, and where it saves time.
        """
        weight, layers = input_weight_of(model), dense_layers_of(model)
        if weight is None or weight not in adapted or (layers is not None and weight not in layers):
            return cls(episode)
        images = torch.cat([episode.support_inputs.flatten(1), episode.query_inputs.flatten(1)])
        count, pixels = images.shape
        few = count < pixels and count**2 <= _SQUARED_IMAGES_A_UNIT * len(parameters[weight])
        if not few or not has_isotropic_noise(mechanism):
            return cls(episode)
        wide = images.double()
        products = wide @ wide.mT
        # Blank images need a number, too, however small.
        products.diagonal().mul_(1 + _ADDED).add_(torch.finfo(torch.float32).tiny)
        factor, failed = torch.linalg.cholesky_ex(products)
        # What is no number anywhere is none on the diagonal.
        if bool(failed) or not math.isfinite(float(factor.diagonal().sum())):
            return cls(episode)
        shots = len(episode.support_inputs)
        picks = torch.eye(count, dtype=images.dtype, device=images.device)
        picked = episode._replace(support_inputs=picks[:shots], query_inputs=picks[shots:])
        return cls(picked, weight, images, factor.to(images.dtype))

    @property
    def support_coordinates(self) -> Parameters:
        """The support images' coordinates in the basis, by the name of the weight; empty without outputs."""
        return {} if self.weight is None or self.factor is None else {self.weight: self.factor[: self._shots]}

    @property
    def support_images(self) -> Parameters:
        """The support images `(support, pixels)`, by the name of the weight; empty without outputs."""
        return {} if self.weight is None or self.images is None else {self.weight: self.images[: self._shots]}

    @property
    def query_images(self) -> Parameters:
        """The query images `(query, pixels)`, by the name of the weight; empty without outputs."""
        return {} if self.weight is None or self.images is None else {self.weight: self.images[self._shots :]}

    @property
    def _shots(self) -> int:
        return len(self.episode.support_labels)

    def outputs(self, parameters: Parameters) -> Parameters:
        """Return `parameters` with the weight's outputs at the images in its place."""
        if self.weight is None or self.images is None:
            return parameters
        return {**parameters, self.weight: parameters[self.weight] @ self.images.mT}

    def support_outputs(self, direction: Parameters) -> Parameters:
        """Return `direction` with the weight's outputs at the support images in its place, and 0 at the others."""
        if self.weight not in direction or self.images is None:
            return direction
        outputs = direction[self.weight] @ self.images[: self._shots].mT
        return {**direction, self.weight: F.pad(outputs, (0, len(self.images) - self._shots))}

    def outputs_of_mean(self, mean: Parameters) -> Parameters:
        """Return `mean`, which has the weight's part in coordinates, with its effect on the outputs in that place."""
        if self.weight not in mean or self.factor is None:
            return mean
        return {**mean, self.weight: mean[self.weight] @ self.factor.mT}
