"""The measurements and attacks of an evaluation: sections whose keys are options of `lconvnet.attacks`.

`pgd`, `fgsm`, `apgd`, `square` and `autoattack` search a ball of radius eps. The others look for the shortest
perturbation, once for all eps. `boundary_attack` and `pointwise` have the names of the original's results.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, Strict, model_validator
from torch import Tensor, nn

from lconvnet.attacks import AttackResult
from lconvnet.experiments.options import ATTACKS, Chosen, Section, arguments, chosen, one_of
from lconvnet.extras import require
from lconvnet.ops.numbers import PositiveFloat, PositiveInt


class Attack(Chosen):
    """The options of every attack: its eps (by default all of the evaluation's) and its images.

    With `mini` only the first `mini_test_size` test images are attacked, as in the original's slow attacks.
    """

    name: str
    eps: Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)] | None = None
    mini: bool = False

    @property
    def by_gradient(self) -> bool:
        """Whether the attack follows the gradient, which may be zero."""
        return self.call.by_gradient

    @property
    def within_ball(self) -> bool:
        """Whether the attack searches a ball of radius eps; otherwise it looks for the shortest perturbation."""
        return "eps" in arguments(self.call)

    @property
    def norm_name(self) -> str:
        """The norm of eps."""
        return "l2"

    @property
    def label(self) -> str:
        """The name, with the norm unless that is l2."""
        return self.name if self.norm_name == "l2" else f"{self.name}-{self.norm_name}"

    @property
    def place(self) -> tuple[str, bool]:
        """Norm and images, which choose the section of results.yaml."""
        return self.norm_name, self.mini

    def made_with(self) -> str:
        """The attack's library and version, "" for this package's own attacks; MissingExtraError if it is absent."""
        if not (library := self.call.library):
            return ""
        require(library, "attacks")
        return f"{library} {version(library)}"

    def apart(self, others: Sequence["Attack"], *, without: set[str]) -> str:
        """`(OPTION=VALUE, ...)` with the options that differ among the attacks of this name; "" if none does."""
        options = [one.model_dump(mode="json", exclude=without | {"name"}) for one in others if one.name == self.name]
        own = self.model_dump(mode="json")
        differing = [key for key in own if any(key in one and one[key] != own[key] for one in options)]
        return f"({', '.join(f'{key}={_short(own[key])}' for key in differing)})" if differing else ""

    def radii(self, evaluation: "Evaluation") -> tuple[float, ...]:
        """The eps at which the attack is evaluated."""
        return self.eps or evaluation.eps

    def runs(self, evaluation: "Evaluation") -> tuple[float | None, ...]:
        """The eps of each run of the attack; None for the one that looks for the shortest perturbation."""
        return self.radii(evaluation) if self.within_ball else (None,)

    def run(self, network: nn.Module, images: Tensor, labels: Tensor, eps: float | None, seed: int) -> AttackResult:
        """Attack images, within eps unless that is None."""
        ball = {} if eps is None else {"eps": eps}
        random = {"seed": seed} if "seed" in arguments(self.call) else {}
        return self.call(network, images, labels, **self.options() | ball | random)


class Normed(Attack):
    """An attack in l2 or l-infinity; the latter needs its own eps, because those of the evaluation are l2."""

    norm: Literal["l2", "linf"] = "l2"

    @property
    def norm_name(self) -> str:
        return self.norm

    @model_validator(mode="after")
    def _linf_needs_eps(self) -> "Normed":
        if self.norm == "linf" and self.eps is None:
            raise ValueError(f"{self.name} has norm linf but no eps; give it one, the evaluation's eps are l2")
        return self


def _short(value: Any) -> str:
    if value is None:
        return "default"
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _base(call: Callable[..., Any]) -> type[Chosen]:
    return Normed if "norm" in arguments(call) else Attack


if TYPE_CHECKING:
    AnyAttack = Attack
else:
    AnyAttack = one_of(ATTACKS, base=_base, hidden=frozenset({"network", "images", "labels", "seed"}))


class Evaluation(Section):
    """The measurements on the test images: certified accuracy at each eps (and each of an attack's), and attacks.

    At each eps of `linear_bounds`, ReLU networks are also certified by linear bounds, because a product of norms says
    little about them.
    """

    eps: Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)] = (1.58,)
    attacks: Annotated[tuple[AnyAttack, ...], Strict(False)] = tuple(
        chosen(AnyAttack, name=name) for name in ("pgd", "fgsm")
    )
    mini_test_size: PositiveInt = 100
    batch_size: PositiveInt = 500
    linear_bounds: Annotated[tuple[PositiveFloat, ...], Strict(False)] = ()

    @model_validator(mode="after")
    def _one_result_for_each_attack_and_eps(self) -> "Evaluation":
        seen: set[tuple[object, ...]] = set()
        for attack in self.attacks:
            for eps in attack.radii(self):
                one = (*attack.place, self.key(attack), eps)
                if one in seen:
                    raise ValueError(
                        f"attacks has {attack.label} at eps {eps} twice; keep one, or give them other eps or options"
                    )
                seen.add(one)
        return self

    def key(self, attack: Attack) -> str:
        """The name of an attack in results.yaml and tables, with the options that set it apart from others there."""
        others = [other for other in self.attacks if other.place == attack.place]
        return attack.name + attack.apart(others, without={"eps", "mini", "norm"})

    def column(self, attack: Attack) -> str:
        """The name of an attack in examples.parquet: name and norm, with the options that set it apart from others
        there. The caller adds the eps of an attack within a ball."""
        others = [other for other in self.attacks if other.label == attack.label]
        return attack.label + attack.apart(others, without={"eps"} if attack.within_ball else set())
