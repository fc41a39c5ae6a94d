"""Fuzzing of everything diba reads: ``python -m fuzz`` here, or ``python3 dev.py fuzz``.

``mutations`` changes contents, ``engine`` runs a driver, ``drivers`` names all of them.
"""
