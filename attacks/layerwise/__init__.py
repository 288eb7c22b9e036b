"""Layer-by-layer inversion: each layer's input from its weight and gradient."""
