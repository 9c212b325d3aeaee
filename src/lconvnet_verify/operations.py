"""What every operation may have: so many inputs, these options, tensors of these ranks; whatever else is refused.

An operation has one form or several. ``Rule(arity, options, more, tensors, also)`` names the options and tensors that
must be there, and those that may be. Options of :data:`NOTES` say again what tensors say, and are not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Check = Callable[[Any], bool]
WEIGHTED = ("Conv2d", "Linear")
"""Operations with a weight, whose norm is theirs."""

JOINS = ("add", "concatenate", "subtract")
"""Operations on several tensors, whose norm is not a number but a rule."""


def whole(least: int, most: int) -> Check:
    """An integer of a range; a truth value is none."""
    return lambda value: type(value) is int and least <= value <= most


def real(value: Any) -> bool:
    """A number that a float holds exactly."""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= 2**53)


def one_of(*choices: Any) -> Check:
    """One of some values, of its type too."""
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


def several(check: Check, count: int | None = None) -> Check:
    """A list of so many, or of any number."""
    return lambda value: type(value) is list and count in (None, len(value)) and all(map(check, value))


@dataclass(frozen=True)
class Rule:
    """One form of an operation."""

    arity: range = range(1, 2)
    options: Mapping[str, Check] = field(default_factory=dict)
    more: Mapping[str, Check] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def fits(self, inputs: int, options: Mapping[str, Any], tensors: Mapping[str, Any]) -> bool:
        """Whether a node with these is of this form."""
        known = {**self.options, **self.more}
        return (
            inputs in self.arity
            and set(self.options) <= set(options) <= set(known)
            and all(known[key](value) for key, value in options.items())
            and set(self.tensors) <= set(tensors) <= {*self.tensors, *self.also}
        )


NATURAL, SIDE, AXIS, SIZE = whole(0, 2**10), whole(1, 2**10), whole(-8, 8), whole(1, 2**30)
PAIR, PADDING = several(SIDE, 2), several(NATURAL, 4)
SLICE = several(whole(0, 2**30), 4)
NOTES = {"in_channels": SIZE, "out_channels": SIZE, "kernel_size": PAIR, "in_features": SIZE, "out_features": SIZE}
CONVOLVED = {"stride": PAIR, "padding": several(NATURAL, 2), "dilation": PAIR, "groups": SIZE,
             "padding_mode": one_of("zeros", "circular")}  # fmt: skip
FIXED = {"circular_padding": PADDING, "transposed": one_of(False), "output_padding": one_of([0, 0])}
ONE, ANY = Rule(), range(1, 2**10)

RULES: dict[str, tuple[Rule, ...]] = {
    "Abs": (ONE,),
    "Conv2d": (Rule(options=CONVOLVED, more={**NOTES, **FIXED}, tensors=("weight",), also=("bias",)),),
    "Flatten": (Rule(options={"start_dim": AXIS, "end_dim": AXIS}),),
    "FullSort": (Rule(options={"dim": AXIS}),),
    "GroupSort": (Rule(options={"dim": AXIS, "group_size": SIZE}),),
    "Identity": (ONE,),
    "InvertibleDownsampling": (Rule(options={"factor": SIDE}),),
    "InvertibleUpsampling": (Rule(options={"factor": SIDE}),),
    "Linear": (Rule(more=NOTES, tensors=("weight",), also=("bias",)),),
    "MaxMin": (Rule(options={"dim": AXIS}),),
    "NearestUpsampling": (Rule(options={"factor": SIDE}),),
    "ReLU": (Rule(more={"inplace": one_of(False, True)}),),
    "Scale": (Rule(options={"factor": real}),),
    "TwoSidedReLU": (ONE,),
    "ZeroPad2d": (Rule(options={"padding": PADDING}, more={"value": one_of(0.0, 0)}),),
    "add": (Rule(range(2, 3)),),
    "concatenate": (Rule(ANY, {"dim": whole(1, 8)}),),
    "input": (Rule(range(1)),),
    "multiply": (Rule(options={"value": real}), Rule(tensors=("constant",))),
    "negate": (ONE,),
    "permute": (Rule(options={"dims": several(whole(0, 8))}),),
    "reshape": (ONE,),
    "shift": (
        Rule(options={"value": real, "sign": one_of(1, -1)}),
        Rule(options={"sign": one_of(1, -1)}, tensors=("constant",)),
    ),
    "slice": (Rule(options={"slices": several(SLICE)}),),
    "subtract": (Rule(range(2, 3)),),
}  # fmt: skip
