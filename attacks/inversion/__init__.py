"""Reconstruction by matching gradients: images that would have caused the observed meta-gradients."""
