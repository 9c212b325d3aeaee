"""Train a generator, get killed, resume, again and again, in forked processes; run as a script, prints a JSON summary.

python killing.py FOLDER --case penalty|lipschitz --by-time 2 --by-write 4
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch

from tests.gan import tiny
from tests.training.killing import finished, forked, kill_again_and_again


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", choices=sorted(tiny.CASES), required=True)
    parser.add_argument("--by-time", type=int, required=True)
    parser.add_argument("--by-write", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    images = tiny.digits()

    def train(folder: Path) -> None:
        tiny.train(options.case, images=images, epochs=3, steps_per_epoch=4, directory=folder, resume=True,
                   checkpoint_every=2)  # fmt: skip

    started = time.perf_counter()
    if not finished(forked(partial(train, options.folder / "whole"))):
        raise SystemExit("the untouched run was killed")
    seconds = time.perf_counter() - started
    killed = {"time": kill_again_and_again(train, options.folder / "time", options.by_time, seconds)}
    killed["write"] = kill_again_and_again(train, options.folder / "write", options.by_write, None)
    sys.stdout.write(json.dumps({**killed, "seconds": round(seconds, 2)}) + "\n")


if __name__ == "__main__":
    main()
