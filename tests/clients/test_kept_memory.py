"""A process that keeps what it has freed builds its next tensor of the pages that it has."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from metaleak.clients.kept_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given = faults()
keep_freed_memory()
for _ in range(4):
    faults()
print(given, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_no_new_pages_are_taken_for_tensors_of_a_size_that_was_freed():
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, ran.stdout.split())
    assert after < before / 10
