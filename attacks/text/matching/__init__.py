"""The optimization attack on text: sentences whose gradient matches the observed one."""
