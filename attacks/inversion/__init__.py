"""Reconstruction: images whose gradients match the observed ones."""
