"""Simulated number formats on float32 tensors: rounding, scaling, and layers that round their GEMM operands."""
