"""`edge-runtime doctor`: look at a car's installation and say what to do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli.asking import print_json
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.lifecycle import run_command
from edge_runtime.cli.logging import configure_logging
from edge_runtime.cli.options import AsJson

if TYPE_CHECKING:
    from edge_runtime.cli.checkup import Finding

DEFAULT_SETTINGS: Final = Path("/etc/edge-runtime/vehicle.toml")

SettingsFile = Annotated[
    Path, Parameter(help="The settings that the car runs with, TOML with a [vehicle] table.")
]


def doctor(
    settings: SettingsFile = DEFAULT_SETTINGS,
    /,
    *,
    quick: Annotated[
        bool,
        Parameter(negative="", help="Leave out sensors, models and broker; takes a second."),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Look at settings, certificates, policy, storage, clock, engine, sensors, models and broker.

    Changes nothing and disturbs no running car. Exit code 1 where something is at fault.
    """
    from edge_runtime.cli.checkup import Checkup, Verdict
    from edge_runtime.cli.installation import read_settings

    # What it finds is told below; what the parts it tries would log is noise beside that.
    configure_logging("auto", "error")
    options, sensing = read_settings(settings)
    checkup = Checkup(options, sensing, settings)
    findings: list[Finding] = []

    async def look() -> None:
        findings.extend(await checkup.run(quick=quick))

    if (code := run_command(look)) != ExitCode.DONE:
        return code
    for finding in findings:
        if as_json:
            print_json(finding)
        else:
            _tell(finding)
    is_fault = any(finding.verdict is Verdict.FAULT for finding in findings)
    return ExitCode.FAILED if is_fault else ExitCode.DONE


def _tell(finding: "Finding") -> None:
    print(f"{finding.verdict.value:<8} {finding.subject:<13} {finding.says}")
    if finding.do:
        print(f"{'':<8} {'':<13} -> {finding.do}")
