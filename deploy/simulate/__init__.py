"""One simulation: its trial, its rounds, and the run directory that it writes."""
