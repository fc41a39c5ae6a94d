"""How many bits each of several matrices gets: noise curves, and what shares them out."""
