"""Objectives: pure functions on arrays, without parameters of their own."""
