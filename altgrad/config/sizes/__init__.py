"""Sizes of the built-in GPT, and what a recipe would need to store a model."""
