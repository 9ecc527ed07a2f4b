"""A GPU in software: what nvcc and Triton make of the kernels runs on machines without one."""
