"""The public interface: experiment files, simulations, benchmark grids, reports, the command line.

Importing this package sets environment variables, unless they are set already. They tell Flower and Ray to send no
telemetry and to look for no updates, because a privacy tool must not make network connections that its user did not
ask for. They also let processes that are started afterwards, such as Ray's actors, keep the memory that they have
once allocated.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

_SETTINGS = {
    # Large pages for the actors' large tensors: on a virtual machine every new small page costs a microsecond.
    # Memory is not given back to the system, since it would soon be requested again.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"
    ":glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=2147483648",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # After Ctrl-C has shut Ray down, a late call of Flower's must fail, not start a cluster anew.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray's advice on a setting of its next version, which Flower decides.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from metaleak.deploy.assess.app_assessment import assess_app
    from metaleak.deploy.audits.audit import Trials, audit
    from metaleak.deploy.audits.canaries import canary_for
    from metaleak.deploy.config.app import read_app
    from metaleak.deploy.config.experiment import Experiment
    from metaleak.deploy.config.plugins import Plugin
    from metaleak.deploy.config.reading import experiment_from, read_experiment
    from metaleak.deploy.config.suite import Suite, read_suite_file
    from metaleak.deploy.from_python import attack_run, run_experiment
    from metaleak.deploy.pretraining.command import run_study
    from metaleak.deploy.pretraining.reading import study_from
    from metaleak.deploy.report.page import write_report
    from metaleak.deploy.simulate.run_directory import RunDirectory
    from metaleak.deploy.suites.benchmark import benchmark

__all__ = [
    "Experiment",
    "Plugin",
    "RunDirectory",
    "Suite",
    "Trials",
    "assess_app",
    "attack_run",
    "audit",
    "benchmark",
    "canary_for",
    "experiment_from",
    "read_app",
    "read_experiment",
    "read_suite_file",
    "run_experiment",
    "run_study",
    "study_from",
    "write_report",
]

_MODULES = {
    "Experiment": "config.experiment",
    "Plugin": "config.plugins",
    "RunDirectory": "simulate.run_directory",
    "Suite": "config.suite",
    "Trials": "audits.audit",
    "assess_app": "assess.app_assessment",
    "attack_run": "from_python",
    "audit": "audits.audit",
    "benchmark": "suites.benchmark",
    "canary_for": "audits.canaries",
    "experiment_from": "config.reading",
    "read_app": "config.app",
    "read_experiment": "config.reading",
    "read_suite_file": "config.suite",
    "run_experiment": "from_python",
    "run_study": "pretraining.command",
    "study_from": "pretraining.reading",
    "write_report": "report.page",
}

if not TYPE_CHECKING:  # Type checkers would take any name for one of these.

    def __getattr__(name: str) -> object:
        """Import the module of a name when the name is first used."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
