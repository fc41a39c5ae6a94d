"""Layers with binary factors, and which dense layer becomes which."""
