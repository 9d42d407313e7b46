"""With this folder in PYTHONPATH, a process and its children save runs every ``SAVE_EVERY`` seconds."""

import os

import gpumlp.training.run

gpumlp.training.run.INTERVAL = float(os.environ["SAVE_EVERY"])
