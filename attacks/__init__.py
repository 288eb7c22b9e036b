"""Offline attacks on a record, and the statistics of what they find."""
