"""Comparing an attack's reconstructions with what learners held."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from metaleak.attacks.attack import Progress, Reconstructions, Reconstructs
from metaleak.attacks.evaluation.lpips import Lpips
from metaleak.attacks.evaluation.measures import Measure
from metaleak.attacks.evaluation.similarity import similarity
from metaleak.attacks.rounds import ReconstructsOverRounds
from metaleak.clients.randomness import keyed_generator
from metaleak.deploy.assess.observe import Attacked, RecordedRounds, observe
from metaleak.deploy.assess.truth import held_inputs
from metaleak.server.record.whole_file import write_whole


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """What an attack rebuilt of L learners with m examples each, paired with what they held.

    `learner (L,)` are int64 numbers and `truth (L, m, ...)` the examples that they held. For each of these,
    `reconstruction (L, m, ...)` is the one that it is paired with (zeros if there is none), `confidence (L, m)` the
    attack's confidence in it, and `alike (L, m)` the similarity of the two. `made` holds everything that was rebuilt.
    `words` maps tokens to text, as far as that is known. `rounds` is the number of rounds that were used.
    """

    measures: tuple[Measure, ...]
    learner: Tensor
    made: Reconstructions
    truth: Tensor
    reconstruction: Tensor
    confidence: Tensor
    alike: Tensor
    words: Mapping[int, str]
    rounds: int

    def write(self, path: Path) -> None:
        """Write the pairs, one per row, to a safetensors file, with the text of tokens in its metadata, as JSON."""
        rows = {
            "learner": self.learner[:, None].expand(self.alike.shape).flatten(),
            "truth": self.truth.flatten(0, 1),
            "reconstruction": self.reconstruction.flatten(0, 1),
            "confidence": self.confidence.flatten(),
            "alike": self.alike.flatten(),
        }
        metadata = {"words": json.dumps(self.words)} if self.words else None
        write_whole(path, save({name: value.contiguous() for name, value in rows.items()}, metadata))


def rebuild(
    attack: Reconstructs,
    attacked: Attacked,
    most: int,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
    lpips: Lpips | None = None,
) -> Rebuilt:
    """Return what `attack` rebuilds of at most `most` learners, drawn at random from those of the first round.

    It uses all rounds if it can use several and learners hold the same sets in each; otherwise only the first. With
    `lpips` this distance of images is measured, too. Raises `ValueError` when the reconstructions do not have the
    form of the learners' examples.
    """
    federation, round = attacked.federation, attacked.rounds[0]
    fixed_sets = federation.partition.fixed_sets(federation.task)
    generator = keyed_generator(federation.seed, round, "reconstructed", attack.asks)
    answered = attacked.answered(round)
    places = torch.randperm(len(answered), generator=generator)[:most].tolist()
    chosen = sorted(answered[place] for place in places)
    some = replace(attacked, learners=chosen)
    rounds = 1
    if isinstance(attack, ReconstructsOverRounds) and len(attacked.rounds) > 1 and fixed_sets:
        rounds = len(attacked.rounds)
        every = RecordedRounds(some, attack, None, device)
        made = attack.reconstruct_over_rounds(every, seed, progress).to("cpu")
    else:
        made = attack.reconstruct(observe(some, round, attack).to(device), seed, progress).to("cpu")
    held = held_inputs(federation, chosen, round, attack.asks)
    if made.confidence.shape != made.examples.shape[:2]:
        raise ValueError(
            f"the attack's confidence {tuple(made.confidence.shape)} does not fit its "
            f"{tuple(made.examples.shape[:2])} examples"
        )
    data = federation.examples()
    pairing, measures = similarity(
        data.modality, made.examples.numpy(), held.numpy(), padding=data.padding, lpips=lpips
    )
    partner = torch.from_numpy(pairing.partner)
    rows = torch.arange(len(chosen))[:, None]
    found = partner >= 0
    at = (rows, partner.clamp(min=0))
    paired = made.examples[at].to(held.dtype) * found.reshape(*found.shape, *[1] * (held.ndim - 2))
    seen = torch.unique(torch.cat([held, paired])).tolist() if data.text_of is not None else []
    return Rebuilt(
        measures=measures,
        learner=torch.tensor(chosen),
        made=made,
        truth=held,
        reconstruction=paired,
        confidence=made.confidence[at].to(torch.float32) * found,
        alike=torch.from_numpy(pairing.alike).to(torch.float32),
        words={token: data.text_of([token]) for token in seen} if data.text_of is not None else {},
        rounds=rounds,
    )
