"""Networks of one bit and a few exceptions on Fashion-MNIST, beside other ways to as few bytes."""
