"""Scaling laws: what loss a number of parameters and an amount of audio lead to."""
