"""Experiments as data: a typed configuration, the run folder it fills, and what training and evaluation write
there."""
