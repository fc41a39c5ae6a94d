"""Data as batches of a model, what ``--data`` names; ``kinds.py`` has the registry of what can be read."""
