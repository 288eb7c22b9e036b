"""Engines that run simulations and attacks, on Ray or in this process."""
