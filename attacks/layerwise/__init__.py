"""Layer by layer: what each layer's weight and gradient give away of its input."""
