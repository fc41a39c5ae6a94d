"""Whole models: what they lose, how fast they run, how much memory they take."""
