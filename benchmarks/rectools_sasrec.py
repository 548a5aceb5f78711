"""Measures the training speed of RecTools' SASRecModel on given events; run by benchmarks/speed.py with another Python.

RecTools needs PyTorch, which does not belong in the environment of this package. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from importlib.metadata import version

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Stopwatch(Callback):
    """Counts the targets and seconds of the steps after the first ``warm_up`` ones, including data loading."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.examples, self.start, self.end = 0, 0.0, 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.end = time.perf_counter()
        if trainer.global_step <= self.warm_up:
            self.start = self.end
        else:
            self.examples += int((batch["y"] != 0).sum())


def quiet_trainer(warm_up: int, steps: int) -> Trainer:
    """Returns RecTools' default trainer, except for the number of steps, the stopwatch and suppressed output."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        max_steps=warm_up + steps,
        callbacks=[Stopwatch(warm_up)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("events", help="CSV with user_id, item_id, weight, datetime.")
    for name in ("width", "blocks", "heads", "length", "batch-size", "warm-up", "steps", "threads", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--loss", required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    seed_everything(options.seed, workers=True)

    events = pd.read_csv(options.events, parse_dates=[Columns.Datetime])
    model = SASRecModel(
        n_factors=options.width,
        n_blocks=options.blocks,
        n_heads=options.heads,
        session_max_len=options.length,
        batch_size=options.batch_size,
        loss=options.loss,
        get_trainer_func=quiet_trainer,
        get_trainer_func_kwargs={"warm_up": options.warm_up, "steps": options.steps},
    )
    model.fit(Dataset.construct(events))
    watch = next(callback for callback in model.fit_trainer.callbacks if isinstance(callback, Stopwatch))
    measured = {
        "examples": watch.examples,
        "seconds": watch.end - watch.start,
        "versions": {"rectools": version("rectools"), "torch": torch.__version__},
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
