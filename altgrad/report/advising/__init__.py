"""What to try after a collapse: causes in the measurements, other formats, and what other runs of the sweep show."""
