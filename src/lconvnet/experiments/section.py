"""What all sections of a configuration share: strictness, and the types of their numbers."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lconvnet.experiments.scalars import quotient

Number = Annotated[float, BeforeValidator(quotient)]
"""A float, or a fraction such as `36/255`."""

PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[Number, Field(gt=0)]
NonNegativeFloat = Annotated[Number, Field(ge=0)]
OpenFraction = Annotated[Number, Field(gt=0, lt=1)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A section of a configuration: frozen, strict, closed to unknown keys, without NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
