"""Training of the diagonals, and of bits that move."""
