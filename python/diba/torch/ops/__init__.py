"""Operators of PyTorch on packed bits, their gradients, and their specification in plain torch."""
