"""What the program works with, as it is or as it may misbehave: for tests, demo and benchmarks."""
