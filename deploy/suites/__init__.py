"""Suites: their cells and jobs, and running those that are missing."""
