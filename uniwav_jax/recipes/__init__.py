"""Recipes: a model, its objectives and its updates."""

from uniwav_jax.recipes.uniwav import build

__all__ = ["build"]
