"""The three GEMMs of a layer on rounded operands: on float32 or bfloat16 values, or on FP8 codes."""
