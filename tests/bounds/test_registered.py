"""Operations of users: bounded, certified at every level, saved and loaded as built-in ones, and refused by name."""

import json
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lconvnet as lc
from lconvnet import atomic
from lconvnet.bounds import AffineBound, ErrorBounds, no_rounding, relative_rounding
from lconvnet.bounds.operations import BUILT_IN, REGISTERED, qualified
from lconvnet.certify import certificate_documents
from lconvnet.saving import describe
from lconvnet_verify.__main__ import main

SHAPE = (4,)


class ScaledTanh(nn.Module):
    """``scale * tanh(x)``: |scale| is its constant, reached at 0."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return self.scale * torch.tanh(x)


class Gained(nn.Module):
    """A parameter of its own and a layer inside."""

    def __init__(self, features, bias=True):
        super().__init__()
        self.features, self.bias = features, bias
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.inner = nn.Linear(features, features, bias=bias)

    def forward(self, x):
        return self.gain * self.inner(x)


def known(call):
    return abs(call.module.scale)


OPTIONS = {"rule": known, "rounding": relative_rounding(8), "save": {"scale": float}}


@pytest.fixture(autouse=True)
def fresh():
    """Nothing stays registered."""
    yield
    REGISTERED.clear()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def classifier(dtype=torch.float32, scale=-0.75):
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), ScaledTanh(scale), nn.Linear(6, 3)
    return nn.Sequential(*layers).to(dtype).eval().requires_grad_(False)


def jacobian_norm(network, x):
    return np.linalg.norm(torch.autograd.functional.jacobian(lambda v: network(v[None])[0], x).numpy(), 2)


def test_bounded_as_its_rule_says():
    lc.register_operation(ScaledTanh, **OPTIONS)
    module = ScaledTanh(-0.75).double()
    bound = lc.lipschitz_bound(module, input_shape=SHAPE)
    assert bound.upper == 0.75 == pytest.approx(jacobian_norm(module, torch.zeros(4, dtype=torch.float64)), rel=1e-12)
    assert 0.1 < bound.lower <= 0.75  # at random points, by power iteration
    assert bound.layers[0].method == "registered"
    network = classifier(torch.float64)
    whole, free = (lc.lipschitz_bound(network, input_shape=shape).upper for shape in (SHAPE, None))
    dense = [np.linalg.norm(network[i].weight.numpy(), 2) for i in (0, 2)]
    assert max(jacobian_norm(network, x) for x in torch.rand(20, 4, dtype=torch.float64)) <= whole
    assert whole <= free == pytest.approx(0.75 * math.prod(dense), rel=1e-3)  # twelve steps of Gram iteration


def test_a_rule_that_is_too_small_is_an_incident():
    lc.register_operation(ScaledTanh, rule=lambda call: 1e-3)
    with pytest.raises(RuntimeError, match="lower bound .* above its upper bound"):
        lc.lipschitz_bound(ScaledTanh(1.0), input_shape=SHAPE)


@pytest.mark.parametrize("level", ["estimate", "analytic", "sound"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certified_at_every_level(level, dtype):
    """Two-sided: no walk up to the radius changes an answer; the radius is what margin and constants say, to 1 %."""
    lc.register_operation(ScaledTanh, **OPTIONS)
    network, images = classifier(dtype), torch.rand(8, 4, dtype=dtype)
    found = lc.certify(network, images, level=level)
    exact = network.double()
    W, V = exact[0].weight, exact[2].weight
    rows = torch.cdist(V, V)[found.label].clamp(min=1e-12)
    top = exact(images.double())
    ahead = top.gather(1, found.label[:, None]) - top
    expected = torch.where(ahead > 0, ahead / rows / (0.75 * torch.linalg.matrix_norm(W, 2)), math.inf).amin(dim=1)
    assert bool((found.radius > 0).all())
    if level == "estimate":
        return
    assert bool((found.radius <= expected * (1 + 1e-9)).all())
    assert found.radius == pytest.approx(expected, rel=1e-2)
    for x, label, radius in zip(images.double(), found.label, found.radius, strict=True):
        for runner_up in range(3):
            v = x.clone().requires_grad_()
            y = exact(v[None])[0]
            (y[label] - y[runner_up]).backward() if runner_up != label else y.sum().backward()
            step = x - v.grad / v.grad.norm() * radius * (1 - 1e-9)
            assert int(exact(step[None]).argmax()) == int(label)


def test_rounding_of_the_float_network_stays_within_its_rule():
    lc.register_operation(ScaledTanh, **OPTIONS)
    x = torch.linspace(-9, 9, 20_001)[:, None]
    errors = (ScaledTanh(0.3)(x).double() - 0.3 * torch.tanh(x.double())).abs()
    assert bool((errors <= 10 * 2.0**-24 * 0.3 * x.double().abs() + 1e-40).all())


def test_without_rounding_it_is_bounded_and_certified_at_no_level_that_counts_it():
    lc.register_operation(ScaledTanh, rule=known)
    network, images = classifier(), torch.rand(2, 4)
    assert lc.lipschitz_bound(network).upper > 0
    lc.certify(network, images, level="estimate")
    for level in ("sound", "analytic"):
        with pytest.raises(ValueError, match=r"'1' \(.*ScaledTanh\) has no rule for its rounding.*register_operation"):
            lc.certify(network, images, level=level)


@pytest.mark.parametrize("found", [None, 1.0, ErrorBounds(*[AffineBound(math.nan, 0.0)] * 3), AffineBound(0.0, 0.0)])
def test_a_rounding_that_is_no_bound_is_named(found):
    lc.register_operation(ScaledTanh, rule=known, rounding=lambda node, inputs, setting: found)
    with pytest.raises(ValueError, match=r"'1' \(.*ScaledTanh\) has a rounding that returns .*ErrorBounds"):
        lc.certify(classifier(), torch.rand(2, 4), level="sound")


def test_saved_and_loaded_in_a_fresh_process_that_registers_it(path, tmp_path):
    lc.register_operation(ScaledTanh, **OPTIONS)
    network, x = classifier(), torch.rand(3, 4)
    lc.save(network, path, input_shape=SHAPE)
    entry = json.loads(describe(path).model_dump_json())["architecture"][1]
    assert (
        entry["op"] == "registered" and entry["kind"].endswith(".ScaledTanh") and entry["arguments"] == {"scale": -0.75}
    )
    found = lc.load(path)
    assert torch.equal(found(x), network(x)) and str(found) == str(network)
    assert lc.lipschitz_bound(found).upper == lc.lipschitz_bound(network).upper == describe(path).bound.upper
    radius = lc.certify(network, x, level="sound").radius
    torch.save({"x": x, "y": network(x), "radius": radius}, tmp_path / "known.pt")
    (tmp_path / "own.py").write_text(
        textwrap.dedent("""
            import sys, torch
            from torch import nn
            import lconvnet as lc
            class ScaledTanh(nn.Module):
                def __init__(self, scale):
                    super().__init__()
                    self.scale = scale
                def forward(self, x):
                    return self.scale * torch.tanh(x)
            ScaledTanh.__module__ = sys.argv[3]
            if sys.argv[4] == "registers":
                lc.register_operation(ScaledTanh, rule=lambda call: abs(call.module.scale),
                                      rounding=lc.bounds.relative_rounding(8), save={"scale": float})
            known = torch.load(sys.argv[2], weights_only=True)
            try:
                network = lc.load(sys.argv[1])
            except ValueError as error:
                sys.exit(str(error))
            same = torch.equal(network(known["x"]), known["y"])
            sys.exit(not (same and torch.equal(lc.certify(network, known["x"], level="sound").radius, known["radius"])))
        """)
    )

    def process(what):
        command = [sys.executable, tmp_path / "own.py", path, tmp_path / "known.pt", ScaledTanh.__module__, what]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    assert process("registers").returncode == 0
    refused = process("forgets")
    assert refused.returncode == 1
    assert "layer '1' is a " in refused.stderr and "ScaledTanh, and a file never imports a class" in refused.stderr


def test_weights_and_layers_inside_are_saved_and_counted(path):
    lc.register_operation(
        Gained, rule=lambda call: 3.0, rounding=relative_rounding(99), save={"features": int, "bias": bool}
    )
    network = nn.Sequential(Gained(4, bias=False)).eval().requires_grad_(False)
    lc.save(network, path, input_shape=SHAPE)
    found = lc.load(path)
    assert torch.equal(found(torch.ones(1, 4)), network(torch.ones(1, 4)))
    network[0].inner.weight[0, 0] = 1e-40
    with pytest.raises(ValueError, match=r"'0.inner.weight' holds subnormal numbers"):
        lc.certify(network, torch.rand(1, 4), level="sound")


def test_without_save_it_is_refused_by_name(path):
    lc.register_operation(ScaledTanh, rule=known)
    with pytest.raises(ValueError, match=r"layer '1' is a ScaledTanh, which was registered without save: .*classes=\["):
        lc.save(classifier(), path)
    lc.save(classifier(), path, classes=[ScaledTanh])
    assert lc.load(path, classes=[ScaledTanh])[1].scale == -0.75


def test_files_of_another_meaning_are_refused(path):
    lc.register_operation(ScaledTanh, **OPTIONS)
    lc.save(classifier(), path)
    description = json.loads(describe(path).model_dump_json())
    for arguments, message in (
        ({"scale": "x"}, r"'1' \(.*ScaledTanh\) has other arguments: scale: "),
        ({}, "scale: Field required"),
        ({"scale": 1.0, "device": "cuda"}, "device: "),
    ):
        description["architecture"][1]["arguments"] = arguments
        atomic.write_safetensors(path, classifier().state_dict(), metadata=json.dumps(description))
        with pytest.raises(ValueError, match=message) as error:
            lc.load(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("held", "message"),
    [(math.inf, "cannot be saved: scale: .*finite"), ("a", "cannot be saved: scale"), (None, "cannot be saved: scale")],
)
def test_attributes_of_another_type_are_not_saved(held, message, path):
    lc.register_operation(ScaledTanh, rule=lambda call: 1.0, save={"scale": float})
    with pytest.raises(ValueError, match=message):
        lc.save(nn.Sequential(ScaledTanh(held)).eval(), path)


class Renamed(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.held = factor

    def forward(self, x):
        return x


def test_an_argument_without_an_attribute_is_named(path):
    lc.register_operation(Renamed, rule=lambda call: 1.0, save={"factor": float})
    with pytest.raises(ValueError, match=r"layer '0' \(Renamed\) has no attribute 'factor'"):
        lc.save(nn.Sequential(Renamed(1.0)).eval(), path)


def test_the_checker_refuses_it_by_name(path, tmp_path, capsys):
    lc.register_operation(ScaledTanh, **OPTIONS)
    network, images = classifier(torch.float64), torch.rand(1, 4, dtype=torch.float64)
    bound = lc.lipschitz_bound(network, input_shape=SHAPE)
    _, documents = certificate_documents(network, images, bound=bound, level="sound", sources=[{}])
    certificate = tmp_path / "0.json"
    certificate.write_text(json.dumps(next(documents)))
    lc.save(network, path, input_shape=SHAPE)
    assert main([str(certificate), str(path)]) == 2
    assert "ScaledTanh" in "".join(capsys.readouterr())


class Calls(nn.Module):
    """A forward pass with functions."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return 2 * self.function(x)


@pytest.mark.parametrize(
    ("kind", "function"),
    [(torch.tanh, torch.tanh), (torch.Tensor.tanh, lambda x: x.tanh()), (F.softsign, lambda x: F.softsign(input=x))],
)
def test_functions_and_methods_of_torch(kind, function):
    network = Calls(function).double().eval()
    with pytest.raises(ValueError, match=r"function '(tanh|softsign)'.*has no Lipschitz rule.*register_operation"):
        lc.lipschitz_bound(network, input_shape=SHAPE)
    lc.register_operation(kind, rule=lambda call: 1.0, rounding=relative_rounding(8))
    bound = lc.lipschitz_bound(network, input_shape=SHAPE)
    assert bound.upper == 2 == pytest.approx(jacobian_norm(network, torch.full((4,), 1e-9).double()), rel=1e-6)
    for level in ("estimate", "analytic", "sound"):
        found = lc.certify(network, torch.tensor([[0.9, 0.1, 0.2, 0.3]], dtype=torch.float64), level=level)
        assert float(found.radius) > 0 and found.reason[0] in ("certified", "estimated")


def test_a_rule_reads_the_arguments_of_a_function():
    """The slope of leaky ReLU is its argument where that is above 1."""
    lc.register_operation(
        F.leaky_relu,
        rule=lambda call: max(1.0, *map(abs, (*call.module.arguments, *dict(call.module.keywords).values()))),
        rounding=relative_rounding(1),
    )
    for function in (lambda x: F.leaky_relu(x, 3.0), lambda x: F.leaky_relu(x, negative_slope=3.0)):
        network = Calls(function).eval()
        assert lc.lipschitz_bound(network, input_shape=SHAPE).upper == 6
        graph = lc.bounds.trace(network, SHAPE).graph
        assert lc.bounds.Graph.from_json(graph.to_json()).nodes[1].operation == "torch.nn.functional.leaky_relu"
    networks = [Calls(lambda x, s=s: F.leaky_relu(x, s)).eval() for s in (2.0, 3.0)]
    assert len({lc.lipschitz_bound(network, input_shape=SHAPE).program for network in networks}) == 2
    with pytest.raises(ValueError, match="'leaky_relu'.*one tensor and plain numbers"):
        lc.lipschitz_bound(Calls(lambda x: F.leaky_relu(x, x.size(0))).eval(), input_shape=SHAPE)


def test_a_function_that_mixes_examples_is_refused():
    lc.register_operation(torch.cumsum, rule=lambda call: 9.0)
    with pytest.raises(ValueError, match=r"\(cumsum\) mixes the examples of a batch"):
        lc.lipschitz_bound(Calls(lambda x: torch.cumsum(x, 0)).eval(), input_shape=SHAPE)


@pytest.mark.parametrize("kind", [operation.kind for operation in BUILT_IN if isinstance(operation.kind, type)])
def test_built_in_modules_are_not_registered_again(kind):
    with pytest.raises(ValueError, match=rf"kind={kind.__name__} has a rule already"):
        lc.register_operation(kind, rule=known)


@pytest.mark.parametrize("kind", [torch.relu, torch.Tensor.relu, F.relu, torch.add, torch.Tensor.view, F.dropout])
def test_built_in_functions_are_not_registered_again(kind):
    with pytest.raises(ValueError, match=rf"kind={kind.__name__} has a rule already"):
        lc.register_operation(kind, rule=known)


def test_twice_is_refused_and_a_class_written_again_takes_the_place_of_the_first():
    def written():
        class Own(nn.Identity):
            pass

        return Own

    first, second = written(), written()
    lc.register_operation(first, rule=lambda call: 1.0)
    with pytest.raises(ValueError, match="kind=Own has a rule already"):
        lc.register_operation(first, rule=lambda call: 1.0)
    lc.register_operation(second, rule=lambda call: 2.0)
    assert lc.lipschitz_bound(nn.Sequential(second())).upper == 2
    assert list(REGISTERED) == [second]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (nn.Module, {}, "must be a class of modules with a forward pass of its own"),
        (nn.Sequential, {}, "must be a class of modules with a forward pass of its own"),
        (int, {}, "must be a class of modules"),
        (nn.ReLU(), {}, "must be a class of modules, a function of torch"),
        (known, {}, "must be a class of modules, a function of torch"),
        (math.tanh, {}, "must be a class of modules, a function of torch"),
        ("tanh", {}, "must be a class of modules, a function of torch"),
        (ScaledTanh, {"rule": 1.0}, r"rule=1.0 must be a function that takes \(call\)"),
        (ScaledTanh, {"rule": lambda: 1.0}, r"rule=.* must be a function that takes \(call\)"),
        (ScaledTanh, {"rule": lambda call, method: 1.0}, r"rule=.* must be a function that takes \(call\)"),
        (ScaledTanh, {"rounding": 8}, r"rounding=8 must be a function that takes \(node, inputs, setting\)"),
        (ScaledTanh, {"rounding": relative_rounding}, "rounding=.* must be a function that takes"),
        (ScaledTanh, {"save": ["scale"]}, r"save=\['scale'\] must give each constructor argument its type"),
        (ScaledTanh, {"save": {}}, r"save lacks 'scale', which ScaledTanh\(scale\) needs"),
        (ScaledTanh, {"save": {"scale": float, "b": int}}, r"save has 'b', which is not an argument of ScaledTanh\(sc"),
        (ScaledTanh, {"save": {"scale": 3}}, "must give types that pydantic knows"),
        (torch.tanh, {"save": {}}, "is for modules: tanh is saved with the module that calls it"),
    ],
)
def test_wrong_arguments_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        lc.register_operation(kind, **{"rule": known, **options})
    assert not REGISTERED


def test_exact_operations_round_nothing():
    lc.register_operation(torch.flip, rule=lambda call: 1.0, rounding=no_rounding)
    network = Calls(lambda x: torch.flip(x, (1,))).eval()
    images = torch.rand(4, 4)
    sound, analytic = (lc.certify(network, images, level=level).radius for level in ("sound", "analytic"))
    assert sound == pytest.approx(analytic, rel=1e-5)  # the product with 2 is what is rounded


def test_a_function_that_mixes_larger_batches_is_refused():
    """A roll by two leaves batches of one and two as they are."""
    lc.register_operation(torch.roll, rule=lambda call: 1.0, rounding=no_rounding)
    with pytest.raises(ValueError, match=r"\(roll\) mixes the examples of a batch"):
        lc.lipschitz_bound(Calls(lambda x: torch.roll(x, 2, 0)).eval(), input_shape=SHAPE)


@pytest.mark.parametrize("roundings", [-1, 0, 1.5, True, math.nan, "x"])
def test_a_number_of_roundings_is_a_positive_integer(roundings):
    with pytest.raises(ValueError, match=r"roundings=.* must be an integer of at least 1"):
        relative_rounding(roundings)


class Variance(nn.Module):
    """What it holds is read, whatever its name."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_var", torch.full((4,), 1e-40))
        self.eps = 1.0

    def forward(self, x):
        return x * (self.running_var * 1e40)


def test_subnormal_numbers_of_a_registered_module_are_refused():
    lc.register_operation(Variance, rule=lambda call: 1.001, rounding=relative_rounding(4))
    network = nn.Sequential(Variance(), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=r"running_var.* holds subnormal numbers"):
        lc.certify(network, torch.rand(2, 4), level="sound")


class Named(nn.Module):
    def __init__(self, name, bias):
        super().__init__()
        self.name, self.bias = name, bias

    def forward(self, x):
        return x + self.bias


def test_arguments_may_be_called_name_and_bias(path):
    lc.register_operation(Named, rule=lambda call: 1.0, rounding=no_rounding, save={"name": str, "bias": float})
    network = nn.Sequential(Named("tanh", 0.5)).eval()
    lc.save(network, path, input_shape=SHAPE)
    assert (lc.load(path)[0].name, lc.load(path)[0].bias) == ("tanh", 0.5)
    REGISTERED.clear()
    lc.register_operation(Named, rule=lambda call: 1.0, rounding=no_rounding, save={"name": int, "bias": float})
    with pytest.raises(ValueError, match=r"layer '0' \(Named\) cannot be saved: name: "):
        lc.save(network, path.with_name("other.safetensors"), input_shape=SHAPE)


def test_functions_without_a_public_name_stay_apart():
    kinds = [one for one in torch.overrides.get_testing_overrides() if not torch.overrides.resolve_name(one)]
    names = {qualified(kind) for kind in kinds}
    assert len(names) == len(kinds) > 1


@pytest.mark.parametrize("kind", [nn.ModuleList, lc.layers.Sum, lc.layers.BCOPConv2d, lc.layers.LipschitzConv2d, {}])
def test_what_has_no_forward_pass_of_its_own_is_not_registered(kind):
    with pytest.raises(ValueError, match="must be a class of modules"):
        lc.register_operation(kind, rule=lambda call: 1.0)
