"""Interventions: classes that act between backward and the optimizer step to save a run."""
