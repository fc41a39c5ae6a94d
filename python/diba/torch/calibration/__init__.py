"""What a model does to data: statistics of the inputs of its layers, in the order in which they run."""
