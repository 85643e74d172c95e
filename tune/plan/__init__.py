"""What is to be trained, in which order and on what: knows no Ray and no torch, so that errors come at once."""
