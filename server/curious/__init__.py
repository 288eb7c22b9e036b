"""The curious server: records what passes a Flower strategy or grid, and changes nothing."""
