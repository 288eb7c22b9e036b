"""Measures of an attack's success, with intervals, and the lower bounds on epsilon that it proves."""
