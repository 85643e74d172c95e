"""Kinds of modules whose matrix products can be rounded, a file for each: how it multiplies, and where its weights are.

`registry.register_gemm` adds a kind.  An adapter is a class that is put in front of the module's own class; it computes
the forward pass through `RoundedGemm.multiply`, which owns the arithmetic.
"""
