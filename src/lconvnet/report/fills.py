"""What would fill a missing cell: the command that trains and evaluates the run, or evaluates it again.

Commands name the configurations of `runs/`, whose paths are the original's.
"""

from shlex import quote

from lconvnet.report import names
from lconvnet.report.groups import Group

FOLDERS = {method: folder for folder, method in reversed(names.METHOD_FOLDERS.items())}
PUBLISHED_RATES = {"MaxMin": "0.0001", "ReLU": "0.001"}
OWN_CERTIFICATE = (
    "no command: these published networks are certified by a method of their own, which results.yaml does not hold"
)
PUBLISHED = (
    "no command trains these published networks; put their weights into {0} and run lconvnet evaluate {0}, or put "
    "their results.yaml there"
)


def to_train(data: str, architecture: str, method: str) -> str:
    """Return the command that trains and evaluates a classifier.

    >>> to_train("mnist", "Large", "RKO")
    'python -m lconvnet.run --cfg runs/adv-rob-mnist/large/RKO/multi-trial-A/cfg.yaml  # then again with --test'
    """
    if method in names.BASELINES.values():
        short = next(key for key, value in names.BASELINES.items() if value == method)
        return PUBLISHED.format(f"runs/baselines/{short}-{data}/{architecture.lower()}")
    family = "fc/3-layers" if architecture == "FC-3" else f"{architecture.lower()}/{FOLDERS.get(method, method)}"
    return _run(f"runs/adv-rob-{data}/{family}/multi-trial-A/cfg.yaml")


def to_train_critic(data: str, method: str, activation: str) -> str:
    """Return the command that trains and evaluates a critic at the published learning rate."""
    inner = "/n_iters-10" if method == "OSSN" else ""
    folder = "BCOP" if method == "BCOP" else FOLDERS[method]
    place = f"conv/{folder}{inner}/{activation.lower()}"
    return _run(f"runs/wde_{data}/lr-{PUBLISHED_RATES[activation]}/{place}/multi-trial-A/cfg.yaml")


def to_measure(group: Group, key: str, eps: float, root: str, *, mini: bool = False) -> str:
    """Return the command that measures `key` at `eps` (l2) in a run that was evaluated without it."""
    facts = group.facts
    if facts.method in names.BASELINES.values() and not facts.specified:
        return OWN_CERTIFICATE if key == "lb" else "no command evaluates these published networks"
    if not facts.specified:
        return to_train(facts.data, facts.architecture, facts.method)
    lacking = next((run for run in group.runs if key not in run.results.at(eps, mini=mini)), group.runs[0])
    run = quote(f"{root}/{lacking.path}")
    if key == "lb" and not mini:
        radii = names.distinct_eps([*lacking.results.rows["l2", False], eps])
        return f"lconvnet evaluate {run} --set 'evaluation.eps=[{', '.join(f'{radius:.10g}' for radius in radii)}]'"
    attack = (key.removesuffix("-ub") if key.endswith("-ub") else "an attack") + (" (mini: true)" if mini else "")
    return f"lconvnet evaluate {run}  # with {attack} under evaluation.attacks of its cfg.yaml"


def _run(cfg: str) -> str:
    return f"python -m lconvnet.run --cfg {cfg}  # then again with --test"
