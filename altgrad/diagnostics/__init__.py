"""What is measured around the real optimizer step: the protocol of a measurement, all of them, and their suite."""
