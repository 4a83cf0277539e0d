"""Triton kernels for GPUs; used only with `EA_PSMNET_TRITON=1`, because no GPU has run them yet."""
