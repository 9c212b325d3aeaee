"""Configurations: what is accepted, and one clear line for what is not."""

import re
import tracemalloc
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError, create_model

from lconvnet import attacks
from lconvnet.experiments import config, options
from lconvnet.experiments.explain import explain, sections, tags, values
from lconvnet.experiments.loading import dump, load, parse
from lconvnet.experiments.run_folder import RunFolder, evaluation_values
from lconvnet.losses import Hinge
from lconvnet.ops.numbers import PositiveFloat, PositiveInt
from lconvnet.training.optimizers import Sgd

S = {"architecture": "small"}


def refused(values: dict, *overrides: str) -> str:
    with pytest.raises(ValueError, match=r"\S") as error:
        parse(values, overrides)
    assert "\n" not in str(error.value), "an error is one line"
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, r"model is missing"),
        ({"model": 3}, r"model is 3; it should be a section"),
        ({"model": {}}, r"model.architecture is missing; Allowed: mlp, small, large, dcgan, kw-small, .*, qw"),
        ({"model": {"architecture": "smal"}}, r"model.architecture is 'smal'; did you mean 'small'\?"),
        ({"model": S | {"conv": "bcopp"}}, r"model.conv is 'bcopp'; did you mean 'bcop'\? Allowed: bcop, bcop-fixed"),
        ({"model": S | {"widths": [3]}}, r"model.widths = \[3\] is not a known key"),
        ({"model": S | {"activation": "groupsort"}}, r"model: group_size is None .* groupsort needs a group_size"),
        ({"model": S | {"group_size": 2}}, r"group_size is 2 with activation 'maxmin'"),
        ({"model": S | {"conv": "unconstrained", "padding_mode": "circular"}}, r"use 'zeros' or leave it out"),
        ({"model": S | {"padding_mode": "reflect"}}, r"model.padding_mode is 'reflect'; Allowed: circular, zeros"),
        ({"model": S, "epochs": 3}, r"epochs = 3 is not a known key; did you mean 'training.epochs'\?"),
        ({"model": S, "training": {"epoch": 3}}, r"training.epoch = 3 .* did you mean 'epochs'\? Keys here: epochs"),
        ({"model": S, "training": {"epochs": "six"}}, r"training.epochs is 'six'; it should be a whole number"),
        ({"model": S, "training": {"epochs": "6"}}, r"training.epochs is '6'; it should be a whole number"),
        ({"model": S, "training": {"epochs": True}}, r"training.epochs is True"),
        ({"model": S, "training": {"epochs": 0}}, r"training.epochs is 0; it should be greater than or equal to 1"),
        ({"model": S, "training": [1]}, r"training is \[1\]; it should be a section"),
        ({"model": S, "seed": -1}, r"seed is -1"),
        ({"model": S, "optimizer": {"name": "adam", "lr": 0.0}}, r"optimizer.lr is 0.0; it should be greater than 0"),
        ({"model": S, "optimizer": {"name": "adan"}}, r"optimizer.name is 'adan'; did you mean 'adam'\?"),
        ({"model": S, "optimizer": {"name": "sgd", "momentum": 0, "nesterov": True}}, r"nesterov is true"),
        ({"model": S, "loss": {"name": "hinge"}}, r"loss.eps is missing"),
        ({"model": S, "loss": {"name": "hinge", "eps": float("nan")}}, r"loss.eps is nan; .* finite number"),
        ({"model": S, "evaluation": {"eps": 0.1}}, r"evaluation.eps is 0.1; it should be a list"),
        ({"model": S, "evaluation": {"eps": [0.1, -1]}}, r"evaluation.eps\[1\] is -1"),
        ({"model": S, "evaluation": {"eps": []}}, r"evaluation.eps is .*at least 1 item"),
        ({"model": S, "evaluation": {"attacks": [{"name": "pdg"}]}}, r"attacks\[0\].name is 'pdg'; did you mean"),
        ({"model": S, "evaluation": {"attacks": [{"name": "pgd", "step": 3}]}}, r"attacks\[0\].step = 3 .* 'steps'"),
        ({"model": S, "data": {"validation": "x"}}, r"data.validation is 'x'; it should be a whole number or a number"),
        ({"model": S, "data": {"augment": "crop"}}, r"data.augment is 'crop'; did you mean 'crop-flip'\?"),
    ],
)  # fmt: skip
def test_invalid_values_name_key_value_and_way_out(values, line):
    with pytest.raises(ValueError, match=line):
        parse(values)
    refused(values)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", r"--set is 'seed'; write key=value"),
        ("=3", r"--set is '=3'; write key=value"),
        ("training..epochs=3", r"write key=value"),
        ("seed=${nothing}", r"a \$\{key\} reference is wrong: .*nothing"),
        ("seed=${", r"a \$\{key\} reference is wrong"),
        ("model=[1]", r"model is \[1\]; it should be a section"),
        ("evaluation.eps=[0.5", r"--set 'evaluation.eps=\[0.5' is not valid YAML: .*column"),
        ("evaluation.eps=[0.5] # x", r"has something behind its value"),
        ("evaluation.eps=[*a]", r"uses a YAML alias"),
        ("evaluation.eps=36/255", r"evaluation.eps is '36/255'; it should be a list"),
        ("evaluation.eps=[1/0]", r"evaluation.eps\[0\]: '1/0' divides by zero"),
        ("evaluation.eps=[.inf]", r"evaluation.eps\[0\] is inf"),
        ("evaluation.eps=[1e999]", r"evaluation.eps\[0\] is inf"),
        ("optimizer={name: adam, name: sgd}", r"duplicate key name"),
        ("a" + ".a" * 5000 + "=1", r"is longer than any key"),
        ("seed=0123", r"seed is '0123'; it should be a whole number"),
        ("seed=1_000", r"seed is '1_000'; it should be a whole number"),
        ("seed=1:30", r"seed is '1:30'"),
        ("seed=0x10", r"seed is '0x10'"),
        ("seed=1e3", r"seed is 1000.0; it should be a whole number"),
        ("seed=" + "9" * 5000, r"seed is inf"),
        ("seed=1 #2", r"seed is '1 #2'"),
        ("evaluation.attacks=[{name: pgd, mini: yes}]", r"mini is 'yes'; it should be true or false"),
        ("data.name=${oc.env:HOME}", r"'oc.env:HOME' is not the name of a key"),
        ("data.name=${oc.create:[1]}", r"is not the name of a key"),
        ("data.name=${.name}", r"is not the name of a key"),
        ("data.name=${data.name}", r"leads back to itself"),
        ("data.name=${data.${seed}}", r"does not close, or holds another"),
        ("data.name=x${model}", r"puts a section or a list into a text"),
        ("training.epochs=", r"training.epochs is None"),
        ("loss.nam=hinge", r"loss.nam = 'hinge' is not a known key; did you mean 'name'"),
    ],
)
def test_invalid_overrides(override, line):
    with pytest.raises(ValueError, match=line):
        parse({"model": S}, [override])


def test_overrides_replace_values_and_later_ones_win():
    found = parse({"model": S}, ["seed=1", "seed=2", "evaluation.eps=[0.1, 0.2]", "optimizer.lr=1e-2"])
    assert (found.seed, found.evaluation.eps, found.optimizer.lr) == (2, (0.1, 0.2), 0.01)


def test_references_to_other_keys():
    values = {"model": S, "loss": {"name": "hinge", "eps": "${evaluation.eps[0]}"}, "evaluation": {"eps": [0.7]}}
    assert parse(values).loss.eps == 0.7


@pytest.mark.parametrize(
    "name",
    ["cells #2", "0123", "12", "1e3", "true", "yes", "36/255", "a: b", "- x", "@x", "&a", "*a", "!x", "é"],
)
def test_a_text_is_what_was_written(name, tmp_path):
    found = parse({"model": S}, [f"data.name={name}"])
    assert found.data.name == name
    (tmp_path / "cfg.yaml").write_text(dump(found), encoding="utf-8")
    assert load(tmp_path / "cfg.yaml") == found


def test_quotes_and_null():
    assert parse({"model": S}, ["data.name='[a] '", "data.directory=null"]).data.name == "[a] "
    assert parse({"model": S | {"architecture": "small"}}, ["data.augment=none"]).data.augment == "none"
    assert parse({"model": S}, ["data.directory=null"]).data.directory is None


def test_a_fraction_is_a_number_wherever_one_is_meant(tmp_path):
    """36/255 is 12/85; the float nearest to it is what Python's own division gives."""
    values = {"model": S, "loss": {"name": "hinge", "eps": "36/255"}, "data": {"validation": "1/5"}}
    changes = ["evaluation.eps=[36/255, 1.58]", "optimizer={name: sgd, lr: 1/8, momentum: 9/10}"]
    found = parse(values, [*changes, "evaluation.attacks=[{name: pgd, eps: [8/255]}]"])
    assert (found.loss.eps, found.data.validation) == (36 / 255, 0.2)
    assert found.evaluation.eps == (36 / 255, 1.58)
    assert (found.optimizer.lr, found.optimizer.momentum) == (0.125, 0.9)
    assert found.evaluation.attacks[0].eps == (8 / 255,)
    (tmp_path / "cfg.yaml").write_text("model: {architecture: small}\nloss: {name: hinge, eps: 36/255}\n")
    assert load(tmp_path / "cfg.yaml").loss.eps == 36 / 255


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_byte_order_mark_and_line_ends_change_nothing(tmp_path, ending):
    (tmp_path / "cfg.yaml").write_bytes(("\ufeffmodel: {architecture: small}" + ending + "seed: 3" + ending).encode())
    assert load(tmp_path / "cfg.yaml").seed == 3


@pytest.mark.parametrize("shape", ["'${%s}${%s}'", "['${%s}', '${%s}']", "{x: '${%s}', y: '${%s}'}"])
def test_references_cannot_multiply(tmp_path, shape):
    """Twenty-two lines that double what the one before holds: gigabytes, were they made."""
    lines = ["a0: xxxxxxxxxxxxxxxx", *(f"a{i}: {shape % (f'a{i - 1}', f'a{i - 1}')}" for i in range(1, 19))]
    (tmp_path / "cfg.yaml").write_text("\n".join(lines))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"references bring in more than 1000000 bytes|puts a section or a list"):
        load(tmp_path / "cfg.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6, "bytes; what 1 MB of entries takes, with room for the parser"


def test_an_override_of_the_type_drops_only_the_files_own_foreign_keys():
    values = {"model": S, "schedule": {"name": "exponential", "gamma": 0.9}, "loss": {"name": "hinge", "eps": 1.5}}
    found = parse(values, ["schedule.name=one-cycle", "loss.name=offset-cross-entropy"])
    assert found.schedule == config.OneCycle()
    assert found.loss == config.OffsetCrossEntropy(eps=1.5), "eps is known to both"
    with pytest.raises(ValueError, match=r"schedule.gamma = 0.5 is not a known key"):
        parse(values, ["schedule.name=one-cycle", "schedule.gamma=0.5"])
    with pytest.raises(ValueError, match=r"schedule.gamma"):
        parse({"model": S, "schedule": {"name": "constant", "gamma": 0.9}})


def test_dump_is_complete_and_reads_back(tmp_path):
    found = parse({"model": S | {"activation": "groupsort", "group_size": 4}, "data": {"validation": 0.25}})
    (tmp_path / "cfg.yaml").write_text(dump(found))
    assert load(tmp_path / "cfg.yaml") == found
    assert "checkpoint_every" in dump(found)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"a:\n  [1", "not valid YAML: .*line 2"),
        (b"- 1\n- 2\n", "a configuration is a mapping"),
        (b"a: 1\na: 2\n", "not valid YAML: found duplicate key a"),
        (b"a: &x [1]\nb: *x\n", "uses a YAML alias"),
        (b"!!python/object/apply:os.system ['true']\n", r"uses a YAML tag \(!!python/object/apply:os.system\)"),
        (b"3", "holds a single value; a configuration is a mapping"),
        (b"seed: " + b"9" * 5000, "seed is inf"),
        (b"", "is empty"),
        (b"# nothing", "is empty"),
        (b"a:\t1\n\tb: 2", "not valid YAML: .*line"),
        (b"? [a]\n: 1\n", "a key that is not one value"),
        (b"a: !!binary aGk=\n", "uses a YAML tag"),
        (b"a: 1\n---\na: 2\n", "not valid YAML"),
        (b"model: {architecture: small}\nseed: 0123\n", "seed is '0123'"),
        (b"model: {architecture: small}\nseed: 1_0\n", "seed is '1_0'"),
        (b"model: {architecture: small}\nloss: {name: hinge, eps: .nan}\n", "eps is nan"),
        (b"model: {architecture: small}\n<<: {seed: 1}\n", "<< = "),
        (b"data: {name: '${oc.env:HOME}'}\n", "is not the name of a key"),
        (b"1: 2\n", "a key that is no text"),
        (b"a: [" + b"1," * 400_000 + b"]", "has more than 40000 keys, values and signs: not a configuration"),
        (b"a: " + b"[" * 100_000, "nested deeper than 20 levels"),
        (b"".join(b" " * i + b"a:\n" for i in range(30)), "nested deeper than 20 levels"),
        (b"#" * 1_000_001, "bytes, more than"),
    ],
)
def test_hostile_files(tmp_path, content, line):
    path = tmp_path / "cfg.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=line) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist"):
        load(tmp_path / "cfg.yaml")
    with pytest.raises(ValueError, match=r"is a folder; name the cfg.yaml in it"):
        load(tmp_path)


def members(section: type[BaseModel], key: str) -> dict[str, type[BaseModel]]:
    """The sections of a key by the name that each answers to."""
    return {name: one for one in sections(section.model_fields[key].annotation) for name in tags(one)[1]}


@pytest.mark.parametrize(
    ("section", "key", "table"),
    [
        (config.Experiment, "model", options.ARCHITECTURES),
        (config.Experiment, "loss", options.LOSSES),
        (config.Experiment, "optimizer", options.OPTIMIZERS),
        (config.Experiment, "schedule", options.SCHEDULES),
        (config.Evaluation, "attacks", options.ATTACKS),
        (config.GanExperiment, "critic", options.OBJECTIVES),
    ],
)
def test_every_name_has_the_options_of_its_callable(section, key, table):
    """`{name: NAME}` and the bare call are the same: every key of a section but those that all share is an argument,
    with one default."""
    found = members(section, key)
    assert found.keys() == table.keys()
    for name, one in found.items():
        arguments = signature(table[name]).parameters
        stated = {option: field for option, field in one.model_fields.items() if option in arguments}
        assert set(one.model_fields) - set(stated) <= SHARED, name
        for option in stated.keys() - SHARED:
            default = arguments[option].default
            assert stated[option].is_required() if default is Parameter.empty else stated[option].default == default


SHARED = {"name", "architecture", "eps", "mini", "linear", "activation", "group_size", "conv", "padding_mode"}
SHARED |= {"published", "width", "upsampling"}


def test_a_layer_goes_by_its_name():
    for key, table in options.PARTS.items():
        for name, layer in table.items():
            pair = {"group_size": 2} if name == "groupsort" else {}
            model = parse({"model": S | {key: name} | pair}).model
            assert model.model_dump()[key] == name
            made = model.parts()[key]
            assert (made.func if pair else made) is layer
    assert get_args(config.Experiment.model_fields["data"].annotation.model_fields["augment"].annotation) == tuple(
        options.AUGMENTATIONS
    )
    assert set(attacks.LOSSES) == set(
        values(members(config.Evaluation, "attacks")["pgd"].model_fields["loss"].annotation)
    )


def test_values_are_the_callables_themselves():
    found = parse({"model": S, "loss": {"name": "hinge", "eps": 0.5}, "optimizer": {"name": "sgd"}})
    assert (found.loss, found.optimizer) == (Hinge(eps=0.5), Sgd())
    assert config.Experiment(model=S, loss=Hinge(eps=0.5), optimizer=Sgd()) == found
    assert found.model_dump()["loss"] == {"name": "hinge", "eps": 0.5}
    with pytest.raises(ValueError, match=r"loss.eps is -1.0; it should be greater than 0"):
        parse({"model": S, "loss": {"name": "hinge", "eps": -1.0}})
    with pytest.raises(ValueError, match=r"schedule.gamma is 1.5; it should be less than or equal to 1"):
        parse({"model": S, "schedule": {"name": "exponential", "gamma": 1.5}})
    with pytest.raises(ValueError, match=r"loss.lipschitz = 2.0 is not a known key"):
        parse({"model": S, "loss": {"name": "hinge", "eps": 1.0, "lipschitz": 2.0}})


@dataclass(frozen=True)
class Toy:
    """A callable that somebody adds to a table."""

    width: PositiveInt = 3
    rate: PositiveFloat | None = None


def test_a_line_in_a_table_is_all_that_a_new_callable_needs():
    kind = options.value_of({"toy": Toy, "hinge": Hinge}, hidden=frozenset({"lipschitz", "p"}))
    experiment = create_model("Trial", __base__=options.Section, loss=(kind, Toy()))
    assert options.chosen(kind, name="toy", width=4, rate="1/8") == Toy(4, 0.125)
    assert experiment().model_dump() == {"loss": {"name": "toy", "width": 3, "rate": None}}
    for stated, line in (
        ({"name": "to"}, r"loss.name is 'to'; did you mean 'toy'\?"),
        (
            {"name": "toy", "widht": 4},
            r"loss.widht = 4 is not a known key; did you mean 'width'\? Keys here: name",
        ),
        ({"name": "toy", "width": 0}, r"loss.width is 0; it should be greater than or equal to 1"),
        ({"name": "hinge", "eps": 1.0, "p": 2}, r"loss.p = 2 is not a known key"),
    ):
        with pytest.raises(ValidationError) as error:
            experiment(loss=stated)
        assert re.match(line, explain(error.value, experiment))


@pytest.mark.parametrize("key", ["training.batch_size", "training.epochs", "evaluation.batch_size", "data.limit"])
def test_numbers_that_nothing_counts_to_are_refused(key):
    section, name = key.split(".")
    with pytest.raises(ValueError, match=rf"{key}.* is 9{{20}}; it should be less than 2147483648"):
        parse({"model": S, section: {name: int("9" * 20)}})


def test_networks_larger_than_the_memory_are_refused():
    layers = {"architecture": "mlp", "widths": [2**31 - 1, 2**31 - 1]}
    with pytest.raises(ValueError, match=r"network does not fit in memory: choose smaller widths or images"):
        parse({"model": layers}).model.build((1, 28, 28), 10, seed=0)
    with pytest.raises(ValueError, match=r"widths\[0\] is 99999999999; it should be less than 2147483648"):
        parse({"model": layers | {"widths": [99_999_999_999]}})


def test_a_link_to_nowhere_is_not_a_missing_configuration(tmp_path):
    """Nor one to itself: what a run's cfg.yaml says of its evaluation is not left out without a word."""
    for target in ("nowhere", "cfg.yaml"):
        (tmp_path / "cfg.yaml").symlink_to(target)
        with pytest.raises(ValueError, match=rf"cfg.yaml is a link that leads nowhere \({target}\); mend it"):
            evaluation_values(RunFolder(tmp_path))
        (tmp_path / "cfg.yaml").unlink()
    assert evaluation_values(RunFolder(tmp_path)) == {}
