"""Make large language models smaller: training-free search for a sub-network, and a checkpoint that loads anywhere.

    import tracenas
    run = tracenas.search("path/or/hub-id", data="text.jsonl", params="60%", out="run", seed=0)
    pruned = tracenas.prune("path/or/hub-id", arch=run.best, out="pruned")
    tracenas.recover(pruned.path, method="pretrain", data="fineweb-edu", out="recovered", tokens="50M")
    print(tracenas.evaluate(["path/or/hub-id", pruned.path], text="held-out.txt").table())

Every function takes the settings of the command of the same name as keywords (`tracenas search --help-all`) and
raises `tracenas.UserError` for what the command line would refuse with exit status 2.
"""

import logging
from typing import TYPE_CHECKING, Any

from tracenas.api import *  # noqa: F403
from tracenas.api import __all__ as _functions
from tracenas.api import __version__ as __version__

if TYPE_CHECKING:
    from tracenas.space.architecture import Architecture as Architecture

__all__ = ["Architecture", *_functions]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name != "Architecture":
        raise AttributeError(f"module 'tracenas' has no attribute '{name}'")
    from tracenas.space.architecture import Architecture  # numpy takes a while to import

    return Architecture
