"""`edge-runtime owner`: what a car's owner asks and decides, on the car, without a network.

A decision is first written where it lasts and then told to the running car, which obeys at once.
A car whose runtime does not run, or does not answer, finds it in the file.
"""

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli.asking import print_json
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.options import DEFAULT_POLICY, DEFAULT_STATE, AsJson

if TYPE_CHECKING:
    from edge_runtime.vehicle.core.explain import RuleSays
    from edge_runtime.vehicle.owner import ConsentSays, OwnerReport
    from edge_runtime.vehicle.policy import OwnerPolicy

_SHOWN_RULES: Final = 3
_LEDGER_ROWS: Final = (
    ("energy, Wh", "total_wh", 3),
    ("  from the grid, Wh", "grid_wh", 3),
    ("  from the pack, Wh", "pack_wh", 3),
    ("  in finished items, Wh", "units_wh", 3),
    ("equivalent full cycles", "equivalent_full_cycles", 6),
    ("wear, % of capacity", "wear_percent", 6),
    ("computing, min", "computing_min", 1),
    ("battery hot, min", "battery_hot_min", 1),
    ("computer hot, min", "compute_hot_min", 1),
    ("times that work began", "begun", 0),
    ("items", "items", 0),
    ("data sent, MB", "sent_mb", 3),
    ("data received, MB", "received_mb", 3),
)

StateDir = Annotated[Path, Parameter(name="--state-dir", help="State folder of the car's runtime.")]
PolicyPath = Annotated[
    Path, Parameter(name="--policy", help="The policy file, where the runtime does not run.")
]


def status(
    *,
    state_dir: StateDir = DEFAULT_STATE,
    policy: PolicyPath = DEFAULT_POLICY,
    as_json: AsJson = False,
) -> int:
    """One screen: consent, what the car does, why, today's energy, work done."""
    report = _report(state_dir, policy)
    if as_json:
        print_json(report)
        return ExitCode.DONE
    why = report.why
    name = report.vehicle or "this car"
    print(f"{name}   {report.runtime}   {report.at:%Y-%m-%d %H:%M:%SZ}")
    print(f"consent   {_consent(report.consent)}")
    if report.trouble:
        print(f"policy    {report.trouble}")
    hold = f" ({why.hold})" if why.hold else ""
    paused = ", paused" if report.is_paused else ""
    print(f"now       {why.availability}{hold}{paused}, {report.units_held} units held")
    for number, rule in enumerate(why.forbids[:_SHOWN_RULES]):
        print(f"{'because' if number == 0 else '':<9} {rule.text}")
    if not why.forbids:
        print(f"{'because':<9} {why.summary}")
    if len(why.forbids) > _SHOWN_RULES:
        print(f"          and {len(why.forbids) - _SHOWN_RULES} more: edge-runtime owner why")
    for number, budget in enumerate(report.budgets):
        if number == 0 or budget.budget is not None:
            of = "" if budget.budget is None else f", of {budget.budget:g}"
            words = "energy" if number == 0 else ""
            print(f"{words:<9} {budget.spent:.3f} {budget.unit}{of}")
    done = report.done
    print(
        f"done      {done.units} units, {done.items_done} items, {done.items_failed} failed, "
        f"{done.energy_wh:g} Wh since the runtime began; {report.results_waiting} results waiting"
    )
    return ExitCode.DONE


def why(
    *,
    state_dir: StateDir = DEFAULT_STATE,
    policy: PolicyPath = DEFAULT_POLICY,
    as_json: AsJson = False,
) -> int:
    """Every rule that forbids or allows work now, the deciding one first, and what would change."""
    report = _report(state_dir, policy)
    if as_json:
        print_json(report.why)
        return ExitCode.DONE
    said = report.why
    print(f"{said.availability}: {said.summary}")
    if said.forbids:
        print("forbids work:")
        for rule in said.forbids:
            _print_rule(rule)
    if said.allows:
        print("allows work:")
        for rule in said.allows:
            _print_rule(rule)
    return ExitCode.DONE


def ledger(
    *,
    state_dir: StateDir = DEFAULT_STATE,
    policy: PolicyPath = DEFAULT_POLICY,
    as_json: AsJson = False,
) -> int:
    """What work for others took: energy, wear, heat, data, today to lifetime; and the budgets."""
    from edge_runtime.contract.errors import LocalError

    report = _report(state_dir, policy)
    books = report.ledger
    if books is None:
        raise LocalError(f"there is no ledger in {state_dir}: this car has not run yet")
    if as_json:
        print_json(books)
        return ExitCode.DONE
    periods = (books.today, books.month, books.year, books.lifetime)
    print(f"{'':<26}" + "".join(f"{period.period:>12}" for period in periods))
    for words, name, digits in _LEDGER_ROWS:
        cells = (f"{getattr(period, name):>12.{digits}f}" for period in periods)
        print(f"{words:<26}{''.join(cells)}")
    print(f"{'energy known by':<26}{', '.join(books.lifetime.methods) or 'nothing yet'}")
    for budget in report.budgets:
        if budget.budget is not None:
            print(f"budget {budget.key}: {budget.spent:.3f} of {budget.budget:g} {budget.unit}")
    return ExitCode.DONE


def pause(
    *,
    state_dir: StateDir = DEFAULT_STATE,
    policy: PolicyPath = DEFAULT_POLICY,
    as_json: AsJson = False,
) -> int:
    """Stop all work now, without withdrawing consent. Lasts until `resume`."""
    from edge_runtime.vehicle.owner_decisions import set_paused

    set_paused(state_dir, _written(policy), paused=True)
    return _told(state_dir, policy, "paused", as_json=as_json)


def resume(
    *,
    state_dir: StateDir = DEFAULT_STATE,
    policy: PolicyPath = DEFAULT_POLICY,
    as_json: AsJson = False,
) -> int:
    """Let work begin again, as the policy allows."""
    from edge_runtime.vehicle.owner_decisions import set_paused

    set_paused(state_dir, _written(_policy_in_use(state_dir, policy)), paused=False)
    return _told(state_dir, policy, "not paused", as_json=as_json)


def consent(
    *,
    state_dir: StateDir = DEFAULT_STATE,
    policy: PolicyPath = DEFAULT_POLICY,
    as_json: AsJson = False,
) -> int:
    """Agree that this car works for others, within the policy. `withdraw` takes it back."""
    from edge_runtime.vehicle.owner_decisions import give_consent

    written = _written(_policy_in_use(state_dir, policy))
    given = give_consent(state_dir, written, _today(), given=True)
    return _told(state_dir, policy, f"consent given, version {given.version}", as_json=as_json)


def withdraw(
    *,
    state_dir: StateDir = DEFAULT_STATE,
    policy: PolicyPath = DEFAULT_POLICY,
    as_json: AsJson = False,
) -> int:
    """Withdraw consent: work stops now, unsent results are dropped. Lasts until `consent`."""
    from edge_runtime.contract.errors import LocalError
    from edge_runtime.vehicle.owner_decisions import give_consent

    try:
        decided = give_consent(state_dir, _written(policy), _today(), given=False)
    except LocalError:
        # What could be written is in the file: the car must hear of it all the same.
        _told(state_dir, policy, "consent withdrawn, not durably", as_json=as_json)
        raise
    what = f"consent withdrawn, version {decided.version}"
    return _told(state_dir, policy, what, as_json=as_json)


def policy(
    *,
    reference: Annotated[
        bool, Parameter(negative="", help="The reference of every key, as Markdown.")
    ] = False,
) -> int:
    """Print a complete policy file with every default; it gives no consent."""
    if reference:
        from edge_runtime.vehicle.policy_reference import policy_reference

        print(policy_reference(), end="")
        return ExitCode.DONE
    from edge_runtime.vehicle.policy import example_policy

    print(example_policy(), end="")
    return ExitCode.DONE


# --- asking and telling the car -----------------------------------------------------------------


def _report(state_dir: Path, policy: Path) -> "OwnerReport":
    """From the running car, else from its files. Raises `NoAnswer`."""
    from edge_runtime.vehicle.owner_socket import NotRunning, ask_owner

    try:
        return ask_owner(state_dir, "report")
    except NotRunning:
        return _from_files(state_dir, policy)


def _from_files(state_dir: Path, policy: Path) -> "OwnerReport":
    from edge_runtime.vehicle.clock import read_clock
    from edge_runtime.vehicle.owner import report_stopped
    from edge_runtime.vehicle.owner_decisions import decisions_path
    from edge_runtime.vehicle.policy_file import PolicyFile

    file = PolicyFile(policy, decisions_path(state_dir))
    return report_stopped(file, state_dir / "journal.db", read_clock())


def _policy_in_use(state_dir: Path, policy: Path) -> Path:
    """The policy file that counts: the running car's own, where it says."""
    from edge_runtime.contract.errors import EdgeError
    from edge_runtime.vehicle.owner_socket import ask_owner

    try:
        return Path(ask_owner(state_dir, "report").policy)
    except EdgeError:
        return policy


def _written(path: Path) -> "OwnerPolicy | None":
    """The policy file, where it is right."""
    from edge_runtime.vehicle.policy import PolicyError, load_policy

    try:
        return load_policy(path)
    except PolicyError:
        return None


def _told(state_dir: Path, policy: Path, what: str, *, as_json: bool) -> int:
    """Have the running car obey what was written; say what it then does."""
    from edge_runtime.vehicle.owner_socket import NotRunning, ask_owner

    try:
        report = ask_owner(state_dir, "look")
    except NotRunning:
        report = _from_files(state_dir, policy)
    if as_json:
        print_json(report)
        return ExitCode.DONE
    if report.is_running:
        hold = f" ({report.why.hold})" if report.why.hold else ""
        print(f"{what}; {report.vehicle} is now {report.why.availability}{hold}")
    else:
        print(f"{what}; the car's runtime is not running in {state_dir} and begins with this")
    if report.trouble:
        print(f"policy: {report.trouble}")
    return ExitCode.DONE


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


# --- words --------------------------------------------------------------------------------------


def _consent(consent: "ConsentSays") -> str:
    if consent.by == "nobody":
        return "never given: edge-runtime owner consent"
    given = "given" if consent.given else "withdrawn"
    date = f" of {consent.date}" if consent.date else ""
    return f"{given}, version {consent.version}{date}, by {consent.by}"


def _print_rule(rule: "RuleSays") -> None:
    read = ""
    if rule.signal and rule.age_s is not None:
        read = f"   (read {rule.age_s:g} s ago, {rule.quality})"
    print(f"  {rule.verdict:<7} {rule.text}{read}")
    if rule.change:
        print(f"          needs: {rule.change}")
