"""Defences: what a learner does to what it computes before anything leaves it."""
