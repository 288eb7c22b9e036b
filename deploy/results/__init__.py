"""What runs and suites left on disk, read with checks."""
