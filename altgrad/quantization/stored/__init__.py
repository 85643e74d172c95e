"""What is rounded where it is stored, after each optimizer step: weights without FP32 masters, and moments."""
