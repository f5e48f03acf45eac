"""Frozen weights and supports in, vanilla weights out: read once, summed in float64, rounded once.

======================  ========================================================================
``formula``             the merge as plain functions on tensors, and into a whole network
``to_file``             backbone file and delta in, the merged network's safetensors file out
``cpu``, ``cuda``       one pass over memory, on NumPy arrays and on torch tensors
``cpu_kernel``          what Numba compiles, in one file for its cache on disk
``cuda_kernel``         what Triton compiles
======================  ========================================================================
"""
