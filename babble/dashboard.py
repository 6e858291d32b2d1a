"""Create a W&B workspace and report for a project: loss with baselines, layers, samples, speed, sweeps.

    babble dashboard
    babble dashboard --project babble --entity our-team
    babble dashboard --out dashboard.json

Workspace and report are sent to W&B. Without a key, or offline, they are written to a file.
"""

from dataclasses import dataclass
from pathlib import Path

from babble.cli import CommandError, run_command
from babble.files import write_json
from babble.training.wandb_run import WandbConfig

COMMAND = "babble dashboard"


@dataclass(frozen=True)
class DashboardConfig:
    """Create a W&B workspace and report for a project.

    Attributes:
        entity: The W&B team or user; by default that of the key.
        project: The W&B project, as given to `babble train` with --wandb.project.
        out: The JSON file that is written if nothing can be sent.
    """

    entity: str | None = None
    project: str = "babble"
    out: Path = Path("dashboard.json")


def build(config: DashboardConfig) -> None:
    """Send workspace and report to W&B and print their URLs; without a key, or offline, write them to a file.

    Raises:
        CommandError: there is a key, but W&B did not accept them; they are in the file.
    """
    # Imported here: --help needs no wandb.
    from babble.reporting import workspace

    if WandbConfig().find_mode() != "online":
        write_json(config.out, workspace.describe(config.entity or "", config.project))
        entity = f" --entity {config.entity}" if config.entity else ""
        print(
            f"No W&B key, or offline: nothing was sent; {config.out} holds the workspace and the report. To send them: "
            f"wandb login, then {COMMAND}{entity} --project {config.project}"
        )
        return
    try:
        for url in workspace.save(config.entity or workspace.read_default_entity(), config.project):
            print(url)
    except Exception as error:  # W&B has no common base class for its errors.
        write_json(config.out, workspace.describe(config.entity or "", config.project))
        raise CommandError(f"W&B did not accept them ({error}); workspace and report are in {config.out}.") from None


def main() -> None:
    """Run `babble dashboard`."""
    run_command(DashboardConfig, build, COMMAND)


if __name__ == "__main__":
    main()
