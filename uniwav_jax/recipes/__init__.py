"""Recipes: a model, its objectives and its updates."""
