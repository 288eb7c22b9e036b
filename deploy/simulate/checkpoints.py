"""The checkpoints of a run: the one from which it is resumed, and those after every round."""

from metaleak.clients.episode import Parameters
from metaleak.deploy.simulate.run_directory import RunDirectory
from metaleak.server.learning.checkpoint import Checkpoint, read_checkpoint
from metaleak.server.record.background_writer import BackgroundWriter
from metaleak.server.record.whole_file import write_whole


class Checkpoints:
    """The checkpoint from which a run begins, and the last one written.

    `begin` is the checkpoint from which it is resumed; `None` for a new run, and for one whose first round was not
    finished. Raises `ValueError` for a checkpoint that cannot be read or is of another model than the `initial`
    parameters.
    """

    def __init__(self, run: RunDirectory, initial: Parameters, resume: bool) -> None:
        self._run = run
        self.begin = _read(run, initial) if resume and run.checkpoint.exists() else None
        self._last = self.begin

    @property
    def rounds_before(self) -> int:
        """How many rounds were done before this process began."""
        return self.begin.round if self.begin is not None else 0

    def keep(self, checkpoint: Checkpoint, background: BackgroundWriter) -> None:
        """Write the state after a round."""
        self._last = checkpoint
        content = checkpoint.content()
        # Queued after the round's replies: a checkpoint on disk means that its record is there, too.
        background.submit(len(content), lambda: write_whole(self._run.checkpoint, content))

    def save_parameters(self) -> None:
        """Write the parameters after the last round that was done, if any was."""
        if self._last is not None:
            self._run.save_parameters(self._last.parameters)


def _read(run: RunDirectory, initial: Parameters) -> Checkpoint:
    checkpoint = read_checkpoint(run.checkpoint)
    shapes = {name: value.shape for name, value in checkpoint.parameters.items()}
    if shapes != {name: value.shape for name, value in initial.items()}:
        raise ValueError(f"{run.checkpoint}: is of another model than experiment.yaml")
    return checkpoint
