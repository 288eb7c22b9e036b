"""The index of a record: a Parquet table for pandas and similar tools. metaleak writes it and never reads it."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metaleak.server.record.layout import Reply

_SCHEMA = pa.schema(
    [
        ("round", pa.int64()),
        ("learner", pa.int64()),
        ("node", pa.string()),
        ("sent", pa.string()),
        ("reply", pa.string()),
        ("row", pa.int64()),
        ("received", pa.float64()),
    ]
)


def index_part(replies: Sequence[Reply]) -> memoryview:
    """Return a Parquet file with the rows of at least one reply."""
    counts = [len(reply.learners) for reply in replies]
    told = {name: [getattr(reply, name) for reply in replies] for name in ("round", "node", "sent", "received")}
    told["reply"] = [reply.name for reply in replies]
    columns = {name: np.repeat(values, counts) for name, values in told.items()}
    columns["learner"] = np.concatenate([reply.learners for reply in replies])
    columns["row"] = np.concatenate([np.arange(count) for count in counts])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pydict(columns, schema=_SCHEMA), sink)
    return memoryview(sink.getvalue())
