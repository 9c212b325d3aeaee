"""The attacks of an evaluation: a section for each, whose keys are the arguments of its function with its defaults.

Of the functions in `lconvnet.attacks`, `pgd`, `fgsm`, `apgd`, `square` and `autoattack` search a ball of radius eps,
the others look for the shortest perturbation, once for every eps. `boundary_attack` and `pointwise` are called as in
the original's results.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from inspect import signature
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, Strict, model_validator

from lconvnet import attacks
from lconvnet.attacks import LossName
from lconvnet.experiments.section import PositiveFloat, PositiveInt, Section
from lconvnet.extras import require


def _default(attack: Callable[..., Any], option: str) -> Any:
    """The default of a function's argument, which stands there alone."""
    return signature(attack).parameters[option].default


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
    by_gradient: ClassVar[bool] = True

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

    @property
    def place(self) -> tuple[str, bool]:
        """Norm and images, which decide the section of results.yaml that it is in."""
        return self.norm_name, self.mini

    def apart(self, others: Sequence["Attack"], *, without: set[str]) -> str:
        """`(OPTION=VALUE, ...)` of the options, but for some, that are not alike in all attacks of this name among
        `others`; "" where all are."""
        options = [one.model_dump(mode="json", exclude=without | {"name"}) for one in others if one.name == self.name]
        own = self.model_dump(mode="json")
        differing = [
            f"{key}={_short(own[key])}" for key in own if any(key in o and o[key] != own[key] for o in options)
        ]
        return f"({', '.join(differing)})" if differing else ""

    def radii(self, evaluation: HasRadii) -> tuple[float, ...]:
        """The eps it is asked for."""
        return self.eps or evaluation.eps


def _short(value: Any) -> str:
    if value is None:
        return "default"
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


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
    """Projected gradient ascent from a random start; the paper: `steps` 200 and `step_size` 0.01."""

    name: Literal["pgd"]
    steps: PositiveInt = _default(attacks.pgd, "steps")
    step_size: PositiveFloat | None = _default(attacks.pgd, "step_size")
    restarts: PositiveInt = _default(attacks.pgd, "restarts")
    loss: LossName = _default(attacks.pgd, "loss")


class Fgsm(Normed):
    """One gradient step to the surface of the ball."""

    name: Literal["fgsm"]
    loss: LossName = _default(attacks.fgsm, "loss")


class Apgd(Normed):
    """PGD that chooses its own steps."""

    name: Literal["apgd"]
    library: ClassVar[str] = "pyautoattack"
    steps: PositiveInt = _default(attacks.apgd, "steps")
    restarts: PositiveInt = _default(attacks.apgd, "restarts")
    loss: Literal["cross-entropy", "logit-difference-ratio"] = _default(attacks.apgd, "loss")


class Square(Normed):
    """Random search that asks for logits only."""

    name: Literal["square"]
    by_gradient: ClassVar[bool] = False
    library: ClassVar[str] = "pyautoattack"
    queries: PositiveInt = _default(attacks.square, "queries")


class AutoAttack(Normed):
    """The standard ensemble: APGD, targeted APGD, targeted FAB, Square."""

    name: Literal["autoattack"]
    library: ClassVar[str] = "pyautoattack"


class DeepFool(Normed, MinimumNorm):
    """Steps over the nearest linearised boundary."""

    name: Literal["deepfool"]
    steps: PositiveInt = _default(attacks.deepfool, "steps")


class CarliniWagner(MinimumNorm):
    """Adam on norm plus c times margin."""

    name: Literal["carlini_wagner"]
    steps: PositiveInt = _default(attacks.carlini_wagner, "steps")
    binary_search_steps: PositiveInt = _default(attacks.carlini_wagner, "binary_search_steps")
    step_size: PositiveFloat = _default(attacks.carlini_wagner, "step_size")


class Ddn(MinimumNorm):
    """Decoupled direction and norm."""

    name: Literal["ddn"]
    steps: PositiveInt = _default(attacks.ddn, "steps")


class Fmn(Normed, MinimumNorm):
    """Fast minimum norm."""

    name: Literal["fmn"]
    steps: PositiveInt = _default(attacks.fmn, "steps")


class BoundaryAttack(MinimumNorm):
    """A random walk along the boundary, by the answers alone."""

    name: Literal["boundary_attack"]
    by_gradient: ClassVar[bool] = False
    steps: PositiveInt = _default(attacks.boundary_attack, "steps")


class Pointwise(MinimumNorm):
    """From noise back to the image, pixel after pixel, by the answers alone."""

    name: Literal["pointwise"]
    by_gradient: ClassVar[bool] = False


class HopSkipJump(Normed, MinimumNorm):
    """Estimated gradients of the boundary, by the answers alone."""

    name: Literal["hop_skip_jump"]
    by_gradient: ClassVar[bool] = False
    steps: PositiveInt = _default(attacks.hop_skip_jump, "steps")
    max_gradient_eval_steps: PositiveInt = _default(attacks.hop_skip_jump, "max_gradient_eval_steps")


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
