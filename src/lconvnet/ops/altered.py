"""What makes a module compute something else than its class says."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as every


def altered(module: nn.Module) -> str:
    """The method of this one module that was replaced, "forward" where it has a forward hook; empty where nothing was.

    >>> relu = nn.ReLU()
    >>> altered(relu)
    ''
    >>> relu.forward = lambda x: 2 * x
    >>> altered(relu)
    'forward'
    """
    if module._forward_hooks or module._forward_pre_hooks:
        return "forward"
    kind = type(module)
    replaced = (key for key, value in vars(module).items() if callable(value) and callable(getattr(kind, key, None)))
    return next(replaced, "")


def refuse_global_hooks() -> None:
    """Raise ``ValueError`` where a hook on all modules changes what each of them computes."""
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        raise ValueError(
            "torch.nn.modules.module has a global forward hook, so no module's type says what it computes: remove it"
        )
