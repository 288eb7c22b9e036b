"""Audits of defenses with a guarantee: the adversary of its definition, with inputs that no data set has."""
