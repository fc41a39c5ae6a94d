"""What makes a compressed checkpoint whole: the entries of its layers, and the checks of its files."""
