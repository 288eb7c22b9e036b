"""Learners that the adversary simulates with its own images, and what is learned from them."""
