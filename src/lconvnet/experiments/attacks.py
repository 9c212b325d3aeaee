"""The attacks of an evaluation: a section for each, whose keys are the arguments of its function.

Of the functions in `lconvnet.attacks`, `pgd`, `fgsm`, `apgd`, `square` and `autoattack` search a ball of radius eps,
the others look for the shortest perturbation, once for every eps. `boundary_attack` and `pointwise` are called as in
the original's results.
"""

from importlib.metadata import version
from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field, Strict, model_validator

from lconvnet.experiments.section import PositiveFloat, PositiveInt, Section
from lconvnet.extras import require


class HasRadii(Protocol):
    """An evaluation, as far as its attacks know it."""

    @property
    def eps(self) -> tuple[float, ...]:
        """The radii to certify."""
        ...


class Attack(Section):
    """What every attack shares: at which eps (default: all of the evaluation's), on how many images.

    With `mini`, only the first `mini_test_size` test images are attacked, as the original does with slow
    attacks.
    """

    name: str
    eps: Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)] | None = None
    mini: bool = False
    library: ClassVar[str] = ""

    def made_with(self) -> str:
        """The library behind it with its version, nothing for this package; MissingExtraError where it is absent."""
        if not self.library:
            return ""
        require(self.library, "attacks")
        return f"{self.library} {version(self.library)}"

    @property
    def norm_name(self) -> str:
        """The norm that eps is measured in."""
        return "l2"

    @property
    def label(self) -> str:
        """The name, with the norm where it is not l2."""
        return self.name if self.norm_name == "l2" else f"{self.name}-{self.norm_name}"

    def radii(self, evaluation: HasRadii) -> tuple[float, ...]:
        """The eps it is asked for."""
        return self.eps or evaluation.eps


class Normed(Attack):
    """An attack in l2 or l-infinity; the latter needs eps of its own, for the evaluation's are l2."""

    norm: Literal["l2", "linf"] = "l2"

    @property
    def norm_name(self) -> str:
        return self.norm

    @model_validator(mode="after")
    def _linf_needs_eps(self) -> "Normed":
        if self.norm == "linf" and self.eps is None:
            raise ValueError(f"{self.name} has norm linf but no eps; give it one, the evaluation's eps are l2")
        return self


class MinimumNorm(Attack):
    """An attack that looks for the shortest perturbation."""

    library: ClassVar[str] = "foolbox"


class Pgd(Normed):
    """Projected gradient ascent; the paper: 200 steps of 0.01 from a random start."""

    name: Literal["pgd"]
    steps: PositiveInt = 200
    step_size: PositiveFloat | None = 0.01
    restarts: PositiveInt = 1


class Fgsm(Normed):
    """One gradient step to the surface of the ball."""

    name: Literal["fgsm"]


class Apgd(Normed):
    """PGD that chooses its own steps."""

    name: Literal["apgd"]
    library: ClassVar[str] = "pyautoattack"
    steps: PositiveInt = 100
    restarts: PositiveInt = 1


class Square(Normed):
    """Random search that asks for logits only."""

    name: Literal["square"]
    library: ClassVar[str] = "pyautoattack"
    queries: PositiveInt = 5000


class AutoAttack(Normed):
    """The standard ensemble: APGD, targeted APGD, targeted FAB, Square."""

    name: Literal["autoattack"]
    library: ClassVar[str] = "pyautoattack"


class DeepFool(Normed, MinimumNorm):
    """Steps over the nearest linearised boundary."""

    name: Literal["deepfool"]
    steps: PositiveInt = 50


class CarliniWagner(MinimumNorm):
    """Adam on norm plus c times margin."""

    name: Literal["carlini_wagner"]
    steps: PositiveInt = 1000
    binary_search_steps: PositiveInt = 9
    step_size: PositiveFloat = 0.01


class Ddn(MinimumNorm):
    """Decoupled direction and norm."""

    name: Literal["ddn"]
    steps: PositiveInt = 100


class Fmn(Normed, MinimumNorm):
    """Fast minimum norm."""

    name: Literal["fmn"]
    steps: PositiveInt = 100


class BoundaryAttack(MinimumNorm):
    """A random walk along the boundary, by the answers alone."""

    name: Literal["boundary_attack"]
    steps: PositiveInt = 5000


class Pointwise(MinimumNorm):
    """From noise back to the image, pixel after pixel, by the answers alone."""

    name: Literal["pointwise"]


class HopSkipJump(Normed, MinimumNorm):
    """Estimated gradients of the boundary, by the answers alone."""

    name: Literal["hop_skip_jump"]
    steps: PositiveInt = 64
    max_gradient_eval_steps: PositiveInt = 10000


AnyAttack = Annotated[
    Pgd
    | Fgsm
    | Apgd
    | Square
    | AutoAttack
    | DeepFool
    | CarliniWagner
    | Ddn
    | Fmn
    | BoundaryAttack
    | Pointwise
    | HopSkipJump,
    Field(discriminator="name"),
]
