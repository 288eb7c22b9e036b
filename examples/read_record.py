"""What did a learner send? Read a record with pandas and safetensors only. Usage: read_record.py RECORD"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

if __name__ == "__main__":
    record = Path(sys.argv[1])
    index = pd.read_parquet(record / "index")
    row = index.iloc[0]
    received = {name: stacked[row["row"]] for name, stacked in load_file(record / row["reply"]).items()}
    print(index.groupby("round")["learner"].count().to_string())
    print({name: f"norm {np.linalg.norm(value):.3f}" for name, value in received.items()})
