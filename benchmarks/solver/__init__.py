"""The solver: time, memory, and what each choice in it is worth."""
