"""Reconstruction of blocks: what is left dense, bits and diagonals of one block fitted to the dense block."""
