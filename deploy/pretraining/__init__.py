"""Studies of what finetuned models give away about the examples behind their start."""
