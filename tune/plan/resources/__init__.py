"""What the trials of a sweep share: CPUs, GPUs and their memory, and which trial runs where and when."""
