"""What a rounding counts in the same pass, and how the counts leave a compiled backward pass."""
