"""Layers of few bits that are trained: binary weights with exceptions, and products of few bits."""
