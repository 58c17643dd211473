"""Recipes: everything a run does, typed, in TOML. Loads no TensorFlow."""

from tfopt.recipe.recipe import BASELINE, PlannedArtifact, Recipe, builtin_recipes

__all__ = ["BASELINE", "PlannedArtifact", "Recipe", "builtin_recipes"]
