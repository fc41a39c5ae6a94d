"""What diba is measured with. ``python benchmarks --help``, from any folder, lists all benchmarks."""
