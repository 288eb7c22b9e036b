"""Exact recovery of a batch from one gradient of a dense layer followed by ReLU (SPEAR)."""
