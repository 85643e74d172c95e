"""The arithmetic of rounding, one kernel for all formats.

`round` rounds one value; `scale` and `tiles` choose the factor that is applied before and after; `random` and
`rotation` supply the numbers that stochastic rounding and a Hadamard rotation need; `counting` counts what happened.
`scaled_rounding` does all of it in one pass; `site` is the state that a layer keeps for one rounding.

Words that stand in every file here:

    spec      a format, the rule of its scales and a salt, packed into one int32 tensor that a graph reads as data
    salt      a number by which one tensor's random numbers differ from another's under the same key
    key       two words from which a step's random numbers are drawn, and the rank as a third
    use       number of earlier draws of a layer with the same key: its second call in a forward pass is use 1
    slot      a dummy input whose gradient carries counts out of a compiled backward pass
    in_bits   computed on the bits of float32, which compiles to fewer instructions; eager code takes a shorter way
    at_rest   rounding of the stored weight itself (no FP32 master weights), as opposed to its copy for a GEMM
"""
