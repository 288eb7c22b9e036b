"""How much a record will take."""

import pytest

from metaleak.deploy.config.reading import experiment_from
from metaleak.deploy.simulate.record_size import record_bytes, size_text


def test_a_record_has_what_was_sent_and_a_reply_of_each_sampled_learner():
    experiment = experiment_from(
        {
            "data": "digits",
            "partition": {"learners": 10},
            "task": {"ways": 3, "shots": 1, "queries": 1},
            "server": {"rounds": 4, "fraction": 0.25},
        },
        "test",
    )
    parameters = sum(value.numel() for value in experiment.federation().initial_parameters().values())
    # The server samples 3 of 10 at 0.25.
    assert record_bytes(experiment) == 4 * parameters * 4 * (3 + 1)


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (6.35e8, "635 MB"), (2.5e15, "2.5e+03 TB")]
)
def test_a_size_is_written_with_its_unit(size, said):
    assert size_text(size) == said
