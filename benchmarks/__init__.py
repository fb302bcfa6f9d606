"""What is timed, side by side with what a user would pick instead:  python -m benchmarks  (see README.md)."""
