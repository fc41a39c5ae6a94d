"""A report as one HTML file: ``page.py`` puts it together from ``figures.py`` and ``tables.py``."""
