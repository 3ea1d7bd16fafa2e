"""Sweeps: many runs of one data set, as jobs, scored and put into one table."""
