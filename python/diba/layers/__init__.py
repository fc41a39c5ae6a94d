"""The layers of a model as matrices, without torch: which are compressed and how, and what a solve gave."""
