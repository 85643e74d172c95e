"""The parts of one training step: passes through the model, the numbers that decide about the step, random numbers."""
