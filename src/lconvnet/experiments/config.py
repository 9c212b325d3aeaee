"""The typed configuration of an experiment: frozen pydantic models, one for each section of a `cfg.yaml`.

A configuration holds only data. Names such as `bcop` meet Python callables in `lconvnet.experiments.names`,
and nowhere else. Types are strict (`"6"` is not a number, `true` is not 1) and unknown keys are refused. All
eps are l2 distances between images with pixels in [0, 1].

>>> from lconvnet.experiments.config import Experiment
>>> experiment = Experiment.model_validate({"model": {"architecture": "small", "conv": "rko"}})
>>> experiment.model.conv, experiment.loss.name, experiment.evaluation.eps
('rko', 'offset-cross-entropy', (1.58,))
"""

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from lconvnet.experiments.attacks import AnyAttack, Attack, Fgsm, MinimumNorm, Pgd
from lconvnet.experiments.section import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Section,
)

ConvName = Literal["bcop", "bcop-fixed", "rko", "ossn", "svcm", "rkl2ne", "unconstrained"]
LinearName = Literal["orthogonal", "cholesky", "spectral-norm", "unconstrained"]
ActivationName = Literal["maxmin", "groupsort", "fullsort", "abs", "relu"]


class Data(Section):
    """Which images: a named set or the path of a folder or parquet file, where to look, what is held out.

    The keys are the arguments of `lconvnet.data.load`: `validation` and `test` are counts or fractions,
    null for its defaults, `validation` 0 to train on every training image and keep the last epoch;
    `image_size` (a side) and `channels` convert; `limit` keeps so many images of each part, for quick
    trials.
    """

    name: Annotated[str, Field(min_length=1)] = "digits"
    directory: str | None = None
    validation: NonNegativeInt | OpenFraction | None = None
    test: PositiveInt | OpenFraction | None = None
    image_size: PositiveInt | None = None
    channels: Literal[1, 3] | None = None
    limit: PositiveInt | None = None
    augment: Literal["none", "crop-flip"] = "none"


class Network(Section):
    """What every architecture shares: the dense layers and the activation."""

    linear: LinearName = "cholesky"
    activation: ActivationName = "maxmin"
    group_size: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _group_size_belongs_to_groupsort(self) -> "Network":
        if (self.activation == "groupsort") != (self.group_size is not None):
            raise ValueError(
                f"group_size is {self.group_size} with activation {self.activation!r}; "
                "groupsort needs a group_size (2 or more), the other activations take none"
            )
        return self


class Mlp(Network):
    """Dense layers of the given hidden widths behind a flatten; the paper's FC-3 is (1024, 1024, 1024)."""

    architecture: Literal["mlp"]
    widths: Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1)] = (1024, 1024, 1024)


class Convnet(Network):
    """The paper's Small (two convolutions) and Large (four) networks, and its critic as a classifier.

    `padding_mode` null is circular, and zeros for the unconstrained convolution, which knows no other.
    """

    architecture: Literal["small", "large", "dcgan"]
    conv: ConvName = "bcop"
    padding_mode: Literal["circular", "zeros"] | None = None

    @model_validator(mode="after")
    def _unconstrained_pads_with_zeros(self) -> "Convnet":
        if self.conv == "unconstrained" and self.padding_mode == "circular":
            raise ValueError("padding_mode is 'circular' with conv 'unconstrained'; use 'zeros' or leave it out")
        return self


class Kw(Section):
    """The networks of Wong et al. 2018, with `mean` and `std` of their input normalisation, one number a channel."""

    architecture: Literal["kw-small", "kw-large", "kw-resnet"]
    mean: Annotated[tuple[Number, ...], Strict(False), Field(min_length=1)] | None = None
    std: Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)] | None = None


class Qw(Section):
    """The network of Qian & Wegman 2019: `channels` of its convolutions, `hidden` features for every class.

    `published` names the published model, 3 or 4, where the weights are its authors'; null where they are trained here.
    """

    architecture: Literal["qw"]
    channels: Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1)] = (32, 64)
    hidden: PositiveInt = 32
    kernel_size: PositiveInt = 5
    published: Literal[3, 4] | None = None


class Hinge(Section):
    """Multi-class hinge loss with margin √2·eps (Li et al. 2019)."""

    name: Literal["hinge"]
    eps: PositiveFloat


class OffsetCrossEntropy(Section):
    """Cross-entropy at a temperature with the true logit lowered by `offset` (default √2·eps)."""

    name: Literal["offset-cross-entropy"]
    eps: PositiveFloat
    temperature: PositiveFloat = 0.25
    offset: NonNegativeFloat | None = None


class Adam(Section):
    """Adam; `betas` are the decay rates of the two moments."""

    name: Literal["adam"]
    lr: PositiveFloat = 1e-3
    betas: Annotated[tuple[Fraction, Fraction], Strict(False)] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0


class Sgd(Section):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: PositiveFloat = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov is true with momentum 0.0; give a momentum or set nesterov to false")
        return self


class Rmsprop(Section):
    """RMSprop; `alpha` is the decay rate of the squared gradient."""

    name: Literal["rmsprop"]
    lr: PositiveFloat = 1e-3
    alpha: Fraction = 0.99
    momentum: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0


class Exponential(Section):
    """The learning rate is multiplied by `gamma` after every epoch (the paper: 0.96235…, 1/2,150 in 200
    epochs)."""

    name: Literal["exponential"]
    gamma: Annotated[Number, Field(gt=0, le=1)] = 0.96235062639


class OneCycle(Section):
    """The learning rate rises to `optimizer.lr` and falls to nearly nothing by the last step."""

    name: Literal["one-cycle"]
    warmup: OpenFraction = 0.3


class Constant(Section):
    """The learning rate stays as it is."""

    name: Literal["constant"]


class Training(Section):
    """The loop: epochs, batch size (over all processes), steps between projections and between checkpoints, device.

    `select_eps` is the radius at which certified accuracy on the validation images chooses the epoch; null is that of
    the loss. `devices` is the number of processes on one machine, each with its share of every batch.
    """

    epochs: PositiveInt = 6
    batch_size: PositiveInt = 128
    select_eps: PositiveFloat | None = None
    project_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 500
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


class Evaluation(Section):
    """What is measured on the test images: certified accuracy at each eps (and each of an attack's), and
    attacks.

    At each eps of `linear_bounds` ReLU networks are also certified by linear bounds, for which a product of norms is
    of little use.
    """

    eps: Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)] = (1.58,)
    attacks: Annotated[tuple[AnyAttack, ...], Strict(False)] = (Pgd(name="pgd"), Fgsm(name="fgsm"))
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
        """What an attack is called in results.yaml and tables: its name, with what sets it apart from others there."""
        others = [other for other in self.attacks if other.place == attack.place]
        return attack.name + attack.apart(others, without={"eps", "mini", "norm"})

    def column(self, attack: Attack) -> str:
        """What an attack is called in examples.parquet: name and norm, with what sets it apart from others there; the
        eps of an attack within a ball is named by whoever asks."""
        others = [other for other in self.attacks if other.label == attack.label]
        return attack.label + attack.apart(others, without=set() if isinstance(attack, MinimumNorm) else {"eps"})


class Experiment(Section):
    """One experiment, complete: the same configuration and seed give the same record."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data = Data()
    model: Annotated[Mlp | Convnet | Kw | Qw, Field(discriminator="architecture")]
    loss: Annotated[Hinge | OffsetCrossEntropy, Field(discriminator="name")] = OffsetCrossEntropy(
        name="offset-cross-entropy", eps=1.58
    )
    optimizer: Annotated[Adam | Sgd | Rmsprop, Field(discriminator="name")] = Adam(name="adam")
    schedule: Annotated[Exponential | OneCycle | Constant, Field(discriminator="name")] = OneCycle(name="one-cycle")
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
