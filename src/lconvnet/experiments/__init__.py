"""Experiments as data: a typed configuration, the run folder it fills, and the results of training and evaluation."""
