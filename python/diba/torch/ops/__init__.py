"""PyTorch operators on packed bits, their gradients, and their reference in plain torch."""
