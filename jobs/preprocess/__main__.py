"""Run `babble preprocess`."""

from babble.cli import run_command
from jobs.preprocess.config import COMMAND, PreprocessConfig
from jobs.preprocess.job import run

if __name__ == "__main__":
    run_command(PreprocessConfig, run, COMMAND)
