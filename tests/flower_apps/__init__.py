"""Federated learning in Flower's own way, which knows nothing of metaleak but the line that wraps it."""
