"""The file `run.json` of a study: when its models were made, with which versions, and whether all of them were."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from metaleak.deploy.errors import Interrupted, one_line
from metaleak.deploy.pretraining.shadow_models import missing_jobs
from metaleak.deploy.pretraining.study import Study
from metaleak.deploy.results.study_file import STUDY_FILE
from metaleak.deploy.simulate.run_directory import RunDirectory, write_text
from metaleak.server.record.plain_file import is_plain


@contextmanager
def noted(study: Study, path: Path, folder: Path) -> Iterator[None]:
    """Write `study.yaml` into the directory `path`, and into `run.json` how the block that makes the models ends.

    Where `folder` holds all models already, `run.json` stays as it is.
    """
    write_text(path / STUDY_FILE, yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
    run = RunDirectory(path)
    if not missing_jobs(study, folder) and (run.done or not is_plain(path, "run.json")):
        yield
        return
    run.begin_study(study.seed)
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        run.end("interrupted")
        raise
    except BaseException as error:
        run.end("failed", one_line(error))
        raise
    run.end("done")
