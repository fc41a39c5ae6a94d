"""How close factors come to real matrices, beside other ways to store them."""
