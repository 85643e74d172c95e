"""Names of number formats that are not registered: synonyms of registered ones, and names refused with a hint."""

from __future__ import annotations

from collections.abc import Mapping

# Further names of registered formats.
SYNONYMS: Mapping[str, str] = {
    "E5M10": "FP16",
    "E8M7": "BF16",
    "E8M10": "TF32",
    "E8M23": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float8_e4m3fn": "E4M3",
    "float8_e5m2": "E5M2",
    "FP8_E4M3": "E4M3",
    "FP8_E5M2": "E5M2",
    "FP6_E3M2": "E3M2",
    "FP6_E2M3": "E2M3",
    "FP4_E2M1": "E2M1",
    "float6_e3m2fn": "E3M2",
    "float6_e2m3fn": "E2M3",
    "float4_e2m1fn": "E2M1",
    "int8": "INT8",
    "int4": "INT4",
    **{f"binary8p{precision}": f"binary8p{precision}se" for precision in range(1, 8)},
}

_SCALES_ONLY = "is a format of scales: unsigned, without zero; for operands use E7M0 (signed powers of two and zero)"
_BLOCKS = "names elements together with their scales; write format: {} with scale_granularity: block"
# Published names that cannot be the format of an operand here, with the name to write instead.
REFUSED: Mapping[str, str] = {
    "E8M0": f"is OCP's E8M0, which {_SCALES_ONLY}",
    "UE8M0": _SCALES_ONLY,
    "float8_e8m0fnu": _SCALES_ONLY,
    "FP8": "is not one format; write E4M3 or E5M2",
    "FP6": "is not one format; write E3M2 or E2M3",
    "FP4": "is not one format; write E2M1 (OCP FP4)",
    "MXFP8": _BLOCKS.format("E4M3"),
    "MXFP6": _BLOCKS.format("E3M2 or E2M3"),
    "MXFP4": _BLOCKS.format("E2M1"),
    "MXINT8": _BLOCKS.format("INT8"),
    "NVFP4": "names elements together with their scales; its elements are E2M1",
    "NF4": "is a table of quantiles, not a format with exponent and mantissa; the nearest here are E2M1 and INT4",
}
