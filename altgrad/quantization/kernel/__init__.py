"""The arithmetic of rounding: formats as data, scales, tiles, rotation, random numbers, counts; one kernel for all."""
