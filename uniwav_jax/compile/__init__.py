"""Ahead of time: whether a config fits a topology that is not there, how fast, at what cost."""
