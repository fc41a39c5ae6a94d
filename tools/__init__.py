"""What dev.py does: the environment, the checks, wheels."""
