"""The way in: experiment files, launching, benchmark grids, reports, the command line.

Importing this package asks Flower and Ray to send no telemetry and to look for no updates: a privacy tool makes no
network connection that its user did not ask for, and it may run where there is none. Processes that are started after
it, Ray's actors among them, keep the memory that they have once had. Set the variables to override.
"""

import os

_SETTINGS = {
    # Large pages for the actors' large tensors: on a virtual machine every new small page costs a microsecond.
    # And memory that is given back is only asked for again.
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
