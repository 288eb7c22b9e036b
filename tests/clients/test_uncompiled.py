"""Derivatives do not import torch's compiler, and do not keep anybody from using it."""

import subprocess
import sys

DERIVATIVE = """
import sys
import torch
from metaleak.clients.rules import rule
square = torch.func.vmap(torch.func.grad_and_value(lambda x: (x * x).sum()))
assert square(torch.ones(2, 3))[0].tolist() == [[2.0] * 3] * 2
assert "torch._dynamo" not in sys.modules
"""
COMPILER = """
assert torch._dynamo.list_backends() and torch._dynamo is sys.modules["torch._dynamo"]
assert square(torch.ones(2, 3))[0].tolist() == [[2.0] * 3] * 2
assert torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(1)).item() == 2.0
"""
STEPS = """
from metaleak.server.learning.optimizer import OuterOptimizer
import numpy
OuterOptimizer().over({"w": torch.ones(2)}).step({"w": numpy.ones(2)})
assert "torch._dynamo" not in sys.modules
"""


def test_derivatives_and_outer_steps_leave_the_compiler_out_and_whoever_asks_for_it_gets_it() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", DERIVATIVE + STEPS + COMPILER], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
