"""Attacks on text: what the gradient of a layer's matrix tells of the tokens that the layer took."""
