"""The arithmetic of rounding, one kernel for all formats.

`round` a value, `scale` and `tiles` around it, `random` numbers and a `rotation` for it, `counters` beside it;
`scaled_rounding` is all of it in one pass, `site` what a layer keeps of it.

Words that stand in every file here:

    spec      a format, the rule of its scales and a salt, packed into one int32 tensor that a graph reads as data
    salt      a number by which one tensor's random numbers differ from another's under the same key
    key       two words from which a step's random numbers are drawn, and the rank as a third
    use       how often a layer has drawn with this key before: its second call in a forward pass is use 1
    slot      a dummy input whose gradient carries counts out of a compiled backward pass
    in_bits   computed on the bits of float32, as compiles to the fewest instructions; eager code has shorter ways
    at_rest   of a weight without FP32 masters, which lives on its grid, as opposed to its image in a GEMM
"""
