"""The curious server: records the messages of a Flower strategy or grid without changing them."""
