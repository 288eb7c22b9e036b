"""TMI: for each point, a small classifier that separates the answers of members from those of non-members."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metaleak.attacks.pretraining.evidence import ShadowAnswers, clipped_log_odds
from metaleak.attacks.seeding import generator_for
from metaleak.attacks.work import Work


class Metaclassifiers(BaseModel):
    """One metaclassifier per point, on the clipped log odds of the shadows' answers (TMI).

    Source: Abascal et al. 2024, algorithm 1, with the settings of the official code: one `hidden` layer with ReLU and
    `dropout`; Adam with `weight_decay` and the learning rate `rate`, multiplied by 0.9 every 7 epochs; batches of
    `batch` answers. Each answer of a shadow is one training example; the score is the mean probability of "member"
    over the victim's answers. The classifiers of all points are trained in parallel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: Annotated[int, Field(ge=1, le=4096)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 20
    batch: Annotated[int, Field(ge=1)] = 64
    rate: Annotated[float, Field(gt=0)] = 5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4

    def __call__(self, shadows: ShadowAnswers, victim: Tensor, work: Work) -> Tensor:
        """Return the mean probability of "member" `(P,)`."""
        generator = generator_for(work.seed, "metaclassifiers")
        count, points, queries, classes = shadows.probabilities.shape
        rows = clipped_log_odds(shadows.probabilities).float().permute(1, 0, 2, 3).flatten(1, 2)
        labels = shadows.member.mT[:, :, None].expand(points, count, queries).flatten(1).long()
        layers = [
            _uniform((points, classes, self.hidden), classes, generator),
            _uniform((points, 1, self.hidden), classes, generator),
            _uniform((points, self.hidden, 2), self.hidden, generator),
            _uniform((points, 1, 2), self.hidden, generator),
        ]
        optimizer = torch.optim.Adam(layers, self.rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.9)
        for _ in range(self.epochs):
            order = torch.randperm(count * queries, generator=generator)
            for some in torch.split(order, self.batch):
                logits = self._logits(layers, rows[:, some], generator)
                loss = F.cross_entropy(logits.flatten(0, 1), labels[:, some].flatten()) * points
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
        with torch.no_grad():
            logits = self._logits(layers, clipped_log_odds(victim).float(), None)
        score: Tensor = logits.double().softmax(dim=-1)[..., 1].mean(dim=1)
        return score

    def _logits(self, layers: list[Tensor], rows: Tensor, generator: torch.Generator | None) -> Tensor:
        first, shift, second, offset = layers
        hidden = F.relu(torch.baddbmm(shift, rows, first))
        if generator is not None and self.dropout:
            kept = torch.rand(hidden.shape, generator=generator) >= self.dropout
            hidden = hidden * kept / (1 - self.dropout)
        logits: Tensor = torch.baddbmm(offset, hidden, second)
        return logits


def _uniform(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> Tensor:
    """Return initial values of a layer, drawn as torch does: uniform in +-1 / sqrt(inputs)."""
    drawn: Tensor = (torch.rand(shape, generator=generator) * 2 - 1) / inputs**0.5
    return drawn.requires_grad_()
