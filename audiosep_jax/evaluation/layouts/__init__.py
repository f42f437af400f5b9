"""What the readers of the benchmarks' layouts share, and the layouts with a reader of their own."""
