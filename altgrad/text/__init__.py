"""Text in and out: what people write, what errors say, foreign text made harmless, numbers as words."""
