"""The way in: experiment files, launching, benchmark grids, reports, the command line."""
