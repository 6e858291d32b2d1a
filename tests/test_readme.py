"""Every command that README.md shows would work as shown."""

import pytest
from documented import ROOT, check_command, find_commands

README = (ROOT / "README.md").read_text()
CLUSTER = (ROOT / "docs/cluster.md").read_text()


def test_readme_shows_how_to_begin() -> None:
    assert {"make demo", "make test"} <= set(find_commands(README))


@pytest.mark.parametrize("command", [*find_commands(README), *find_commands(CLUSTER)])
def test_command_would_work(command: str) -> None:
    check_command(command)


def test_only_sh_blocks_are_commands() -> None:
    text = "```sh\n# why\nmake demo  # now\n\nmake \\\n  test\n```\n```text\nmade\n```\n```sh\nmake lint\n```\n"
    assert [" ".join(command.split()) for command in find_commands(text)] == [
        "make demo # now",
        "make test",
        "make lint",
    ]


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("make no-such-target", "'no-such-target' is no target"),
        ("make test NOTHING=1", "'NOTHING=1' is no target"),
        ("sbatch slurm/no-such-script.sh", "'slurm/no-such-script.sh' is no script"),
        ("sbatch", "is no script"),
        ("sbatch --nodes=2 slurm/train.sh --no-such-flag 1", "no.such.flag"),
        ("slurm/pipeline.sh book --source x -- --config configs/babble.yaml", "source"),
        ("slurm/pipeline.sh book --sources x -- --no-such-flag 1", "no.such.flag"),
        ("pip install -c constraints.txt -e '.[no-such-extra]'", "'no-such-extra' is no extra"),
        ("pip install babble", "no kind of command"),
        ("rm -rf runs", "no kind of command"),
        ("make demo && rm -rf runs", "no kind of command"),
        ("python -m babble.generate runs/demo --out - | no-such-player", "no kind of command"),
        ("python -m babble.train --no-such-flag 1", "no.such.flag"),
        ("python -m babble.train --model.units many", "model.units"),
        ("python -m babble.train --config configs/no-such-file.yaml", "no-such-file"),
        ("python -m babble.generate runs/demo --second 60", "second"),
        ("python -m jobs.preprocess --source tests/speech --out shards/demo", "source"),
    ],
)
def test_a_command_that_would_not_work_is_found(command: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "make test PYTHON=python3.12",
        "pip install -c constraints.txt -e '.[preprocess,train]'",
        "WANDB_MODE=offline python -m babble.train --config configs/demo.yaml --data.shards shards/demo --name demo",
        "python -m babble.generate runs/demo --seconds 60 --out - | aplay -f S16_LE -r 8000",
        "python -m jobs.preprocess --sources a.mp3 b.mp3 --out shards/demo",
    ],
)
def test_a_command_that_works_passes(command: str) -> None:
    check_command(command)
