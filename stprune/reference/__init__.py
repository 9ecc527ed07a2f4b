"""The oracle: every op in plain torch, float64, slow on purpose and readable. Tests compare kernels with it."""
