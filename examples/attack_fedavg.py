"""Attack the record of a FedAvg app that `metaleak.server.CuriousServer` has written.

Usage: attack_fedavg.py RECORD APP.YAML
"""

import sys
from pathlib import Path

from metaleak.deploy import Plugin, assess_app, read_app

if __name__ == "__main__":
    record, app = Path(sys.argv[1]), read_app(Path(sys.argv[2]))
    folder, found = assess_app(record, app, Plugin(name="span"))
    print(f"AUC {found.evaluation.auc.value:.3f}; scores in {folder.name}/scores.parquet")
