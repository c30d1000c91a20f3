"""Recipes, optimizers, checkpoints, and one training loop for two tasks."""
