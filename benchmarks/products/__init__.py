"""Products of one matrix beside those of other libraries, and what a call costs."""
