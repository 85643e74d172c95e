"""Text in and out: YAML and paths are checked, errors shortened, foreign text made harmless, numbers written out."""
