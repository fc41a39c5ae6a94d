"""Bits shared out between the layers of a model: by noise, by measured loss, or by retuning scores."""
