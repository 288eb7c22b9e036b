"""Blind source separation of the images that are mixed in a first layer's gradient."""
