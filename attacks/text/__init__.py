"""Attacks on text: token sequences reconstructed from the gradients of a transformer's weight matrices."""
