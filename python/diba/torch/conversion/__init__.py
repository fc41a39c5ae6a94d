"""Dense layers replaced by factored ones, and the report of it."""
