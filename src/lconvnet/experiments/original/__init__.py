"""Configurations in the original's grammar, read as ours.

There a value is `{<type>: NAME, <init>: BOOL, argument: ...}`: a callable by its registered name with its arguments,
called when the file is read or kept as a partial application; `<list>` holds positional arguments, and the keys of
`[submodules]` stand in its place. Here the names are a closed set, each read by one function: nothing is evaluated or
imported by name. What has no equal here is refused with its place in the file.
"""

from lconvnet.experiments.original.runs import is_original, network, translate

__all__ = ["is_original", "network", "translate"]
