"""Plans a sweep: its trials, their order and resources; imports no Ray and no torch, so that errors come early."""
