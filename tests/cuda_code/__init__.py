"""The kernels that Inductor generates for an H100 from our rounding, examined on a machine without a GPU."""

PINNED = {"torch": "2.13.0", "triton": "3.7.1"}  # `pretended_gpu` uses private names of these
