"""A small training that stops at an epoch and waits; test_two_trainings.py starts it.

::

    python training_driver.py STORE EPOCH    prints "at EPOCH" when so many are done, then waits

After a line on stdin it trains on. Without such an epoch it never waits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from glora_deploy.training import pipeline
from glora_deploy.training.config import RunConfig, TrainConfig
from tasks import make_task, use_small_backbone

EPOCHS = 6
TASK = "colours"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    store, waiting = Path(sys.argv[1]), int(sys.argv[2])

    def report(stage: str, done: int, total: int, note: str) -> None:
        if stage == "lora":
            say(f"at {done}")
            if done == waiting:
                sys.stdin.readline()

    train = TrainConfig.preset("short", epochs=EPOCHS, ranks=(3,), checkpoint_every=2)
    config = RunConfig(
        task=TASK, data=TASK, method="lora", train=train, search=None, version="release"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
        use_small_backbone(patch)
        pipeline.run(config, store, report, tell=say)


if __name__ == "__main__":
    main()
