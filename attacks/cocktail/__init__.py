"""Blind source separation: the images that a first layer's gradient is a mixture of."""
