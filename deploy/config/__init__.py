"""Experiment and suite files, and finding what they name."""
