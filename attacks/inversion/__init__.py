"""Gradient inversion: reconstruction of images whose gradients match the observed ones."""
