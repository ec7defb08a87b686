"""`edge-runtime pki`: who may be on the broker, and whose orders cars obey.

`init`, `enroll`, `revoke` and `signing-key` run where the authority is; `request`, `accept` and
`renew` where an identity is. Only requests and answers travel between them, never a key.
"""

import asyncio
import datetime as dt
import os
import pwd
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter

from edge_runtime.cli.identity import TlsOptions
from edge_runtime.cli.options import check_broker_url, readable_file
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError, RemoteError
from edge_runtime.contract.topics import require_id
from edge_runtime.pki.files import PUBLIC_MODE, PkiError, read_file, write_file
from edge_runtime.pki.house import CAR_DAYS, SERVICE_DAYS, House

if TYPE_CHECKING:
    from edge_runtime.pki.authority import Authority
    from edge_runtime.pki.identity import IdentityFolder, Validity

_PASSPHRASE_VARIABLE: Final = "EDGE_RUNTIME_PKI_PASSPHRASE"  # noqa: S105 - the variable's name
_TLS: Final = TlsOptions()
_REQUEST_VARIABLE: Final = "EDGE_RUNTIME_REQUEST"

HouseFolder = Annotated[Path, Parameter(help="The deployment's folder, made by `pki init`.")]
IdentityPath = Annotated[Path, Parameter(help="Folder of one identity.")]
PassphraseFile = Annotated[
    Path | None,
    Parameter(
        name="--passphrase-file",
        help=f"File with the authority's passphrase; none: ${_PASSPHRASE_VARIABLE}, or without.",
    ),
]
Days = Annotated[int | None, Parameter(help="Life of a certificate, days.", name="--days")]
Hosts = Annotated[
    tuple[str, ...],
    Parameter(name="--broker-host", help="Name or IP by which the broker is reached.", negative=""),
]
Enrolled = Annotated[
    tuple[str, ...],
    Parameter(name="--enroll", help="A car on this machine to enrol as well.", negative=""),
]


def init(
    house: HouseFolder,
    /,
    *,
    broker_host: Hosts = ("localhost", "127.0.0.1", "::1"),
    enroll: Enrolled = (),
    cars_port: Annotated[int, Parameter(help="Broker's port for cars.")] = 8883,
    services_port: Annotated[int, Parameter(help="Broker's port for dispatchers.")] = 8884,
    tenants_port: Annotated[int, Parameter(help="Broker's port for tenants.")] = 8885,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a deployment: authorities, the broker's files, the dispatcher's identity and key."""
    from edge_runtime.pki.broker_files import BrokerLayout
    from edge_runtime.pki.house import build_house

    for name in enroll:
        require_id("--enroll", name)
    home, folder = House(house), house.resolve()
    layout = BrokerLayout(
        folder=str(folder / "broker"),
        data=str(folder / "broker" / "data"),
        user=pwd.getpwuid(os.geteuid()).pw_name,
        cars_port=cars_port,
        services_port=services_port,
        tenants_port=tenants_port,
    )
    if any(character.isspace() for character in layout.folder):
        raise ConfigError(f"{folder}: Mosquitto's configuration takes no path with a space")
    authority = build_house(home, layout, broker_host, _passphrase(passphrase_file))
    print(f"authority   {home.authority}  (keep it offline: it can make anybody)")
    print(f"broker      mosquitto -c {home.broker / 'mosquitto.conf'}")
    print(f"dispatcher  {home.dispatcher}")
    for name in enroll:
        _enrol_here(home, authority, name, CAR_DAYS)


def enroll(
    house: HouseFolder,
    names: Annotated[tuple[str, ...], Parameter(help="Cars on this machine.")] = (),
    /,
    *,
    csr: Annotated[
        Path | None, Parameter(help="A request from `pki request` on another machine.")
    ] = None,
    name: Annotated[
        str | None, Parameter(help="Certify the request under this name, not its own.")
    ] = None,
    role: Annotated[Literal["car", "dispatcher"], Parameter(help="What it is.")] = "car",
    out: Annotated[Path | None, Parameter(help="Where the answer to --csr goes.")] = None,
    days: Days = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Certify cars: by name, both sides on this machine; or the request of another machine.

    The answer (--out) goes back to `pki accept`. No private key ever leaves its machine.
    """
    from edge_runtime.pki.authority import Grant, Role, requested_name
    from edge_runtime.pki.identity import answer_request

    for one in names if name is None else (*names, name):
        require_id("a car's name", one)
    if bool(names) == (csr is not None):
        raise ConfigError("name cars of this machine, or --csr with one request")
    home = House(house)
    authority = home.open(_passphrase(passphrase_file))
    as_what = Role(role)
    life = days or (CAR_DAYS if as_what is Role.CAR else SERVICE_DAYS)
    if csr is None:
        if as_what is not Role.CAR:
            raise ConfigError("--role dispatcher needs --csr")
        for one in names:
            _enrol_here(home, authority, one, life)
        return
    if out is None:
        raise ConfigError("--csr needs --out, the file for the answer")
    request = read_file(csr)
    grant = Grant(as_what, name or requested_name(request), life)
    write_file(out, answer_request(authority, request, grant), mode=PUBLIC_MODE)
    print(f"{grant.name}: answer in {out}; on its machine: edge-runtime pki accept FOLDER {out}")


def request(
    identity: IdentityPath,
    /,
    *,
    name: Annotated[str, Parameter(name="--id", help="Vehicle id, or the dispatcher's name.")],
) -> None:
    """Make a key in IDENTITY and print where the request for its certificate is."""
    from edge_runtime.pki.identity import new_identity

    require_id("--id", name)
    folder = new_identity(identity)
    folder.ask(name)
    print(f"{name}: give {folder.request} to `edge-runtime pki enroll HOUSE --csr`")


def accept(
    identity: IdentityPath, answer: Annotated[Path, Parameter(help="The answer.")], /
) -> None:
    """Put the answer to IDENTITY's waiting request in force."""
    from edge_runtime.pki.identity import IdentityFolder

    _print_validity(IdentityFolder(identity).accept(read_file(answer)), identity)


def status(identity: IdentityPath, /) -> None:
    """Print whose IDENTITY is, until when it holds and from when it is renewed."""
    from edge_runtime.pki.identity import IdentityFolder

    _print_validity(IdentityFolder(identity).validity(), identity)


def renew(
    identity: IdentityPath,
    /,
    *,
    authority: Annotated[
        Path | None, Parameter(help="The deployment's folder, where it is on this machine.")
    ] = None,
    hook: Annotated[
        str | None,
        Parameter(
            help=f"Command that takes the request (file in ${_REQUEST_VARIABLE}, also on stdin) "
            "to the authority and prints the answer."
        ),
    ] = None,
    if_due: Annotated[
        bool, Parameter(negative="", help="Only when two thirds of its life have passed.")
    ] = False,
    days: Days = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Renew IDENTITY with a new key; the old certificate stays valid until its own end.

    A service that runs with IDENTITY uses the new one by itself. Where anything fails, the
    identity stays as it was.
    """
    from edge_runtime.pki.authority import Branch
    from edge_runtime.pki.house import renew_here
    from edge_runtime.pki.identity import IdentityFolder

    if (authority is None) == (hook is None):
        raise ConfigError("say --authority HOUSE or --hook COMMAND")
    folder = IdentityFolder(identity)
    validity = folder.validity()
    if if_due and not validity.is_due(dt.datetime.now(dt.UTC)):
        print(f"{validity.name}: not due before {validity.renewal:%Y-%m-%d %H:%M} UTC")
        return
    if authority is not None:
        home = House(authority)
        opened = home.open(_passphrase(passphrase_file))
        is_car = bool(opened.issued(Branch.CARS, validity.name))
        life = days or (CAR_DAYS if is_car else SERVICE_DAYS)
        renewed = renew_here(opened, folder, life)
    else:
        renewed = _renew_by(shlex.split(hook or ""), folder, validity.name)
    _print_validity(renewed, identity)


def revoke(
    house: HouseFolder,
    name: Annotated[str, Parameter(help="Whose certificates.")],
    /,
    *,
    branch: Annotated[
        Literal["cars", "services"], Parameter(help="Which authority issued them.")
    ] = "cars",
    broker_pid: Annotated[
        int | None, Parameter(help="Mosquitto's process here, told to read the list again.")
    ] = None,
    kick: Annotated[
        str | None,
        Parameter(help="Broker's address for dispatchers, mqtts://host:port: end its session too."),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Revoke all certificates of NAME, and end its session.

    Three steps, all needed: the list (CRL), Mosquitto reading it (SIGHUP), and the kick, for a
    session that is up survives both. What this command cannot do it says.
    """
    from edge_runtime.pki.authority import Branch
    from edge_runtime.pki.house import revoke as revoke_here

    if kick is not None:
        check_broker_url("--kick", kick)
    home = House(house)
    which = Branch(branch)
    fresh = revoke_here(home.open(_passphrase(passphrase_file)), home, which, name)
    print(f"{name}: {len(fresh)} certificate(s) revoked; list in {home.broker}")
    if broker_pid is not None:
        os.kill(broker_pid, signal.SIGHUP)
    else:
        print(f"now: copy {home.broker}/*-crl.pem to the broker and send Mosquitto SIGHUP")
    if kick is not None and broker_pid is not None:
        asyncio.run(_kick(kick, home.dispatcher, name))
        print(f"{name}: its session is ended")
    else:
        print(
            f"then: edge-runtime pki kick {name} --broker mqtts://BROKER:8884 "
            f"--identity {home.dispatcher}"
        )


def kick(
    name: Annotated[str, Parameter(help="Whose session.")],
    /,
    *,
    broker: Annotated[str, Parameter(help="Broker's address for dispatchers, mqtts://host:port.")],
    tls: TlsOptions = _TLS,
) -> None:
    """End NAME's live session and destroy its queue, by taking its client id for a moment."""
    check_broker_url("--broker", broker)
    if tls.identity is None:
        raise ConfigError("--identity must be the dispatcher's")
    asyncio.run(_kick(broker, tls.identity, name))
    print(f"{name}: its session is ended")


def tenant(
    house: HouseFolder,
    action: Annotated[Literal["add", "remove", "list"], Parameter(help="What to do.")],
    name: Annotated[str | None, Parameter(help="The tenant, for add and remove.")] = None,
    /,
    *,
    reader: Annotated[
        str | None, Parameter(help="One of its readers, beside the tenant's own user.")
    ] = None,
    broker_pid: Annotated[
        int | None, Parameter(help="Mosquitto's process here, told to read the accounts again.")
    ] = None,
) -> None:
    """Let third parties read a tenant's topics. The broker has one connection for each user.

    `add` prints the user and its password, this once; a user that is there gets a new password.
    `remove` without --reader removes all of the tenant's users.
    """
    from edge_runtime.pki.tenants import accounts, add_account, remove_account

    folder = House(house).broker
    if action == "list":
        print("".join(f"{user}\n" for user in accounts(folder)), end="")
        return
    if name is None:
        raise ConfigError(f"{action} needs a tenant")
    if action == "add":
        account = add_account(folder, name, reader)
        print(f"user      {account.user}\npassword  {account.password}")
    else:
        for user in remove_account(folder, name, reader):
            print(f"{user}: removed")
    if broker_pid is not None:
        os.kill(broker_pid, signal.SIGHUP)
    else:
        print("now: send Mosquitto SIGHUP; it reads the accounts again", file=sys.stderr)


def signing_key(
    house: HouseFolder,
    action: Annotated[Literal["list", "new", "use", "retire"], Parameter(help="What to do.")],
    key_id: Annotated[str | None, Parameter(help="Which key, for use and retire.")] = None,
    /,
) -> None:
    """The dispatcher's signing keys. To change one:

    1. `new`: cars trust it as well from their next enrolment or renewal on.
    2. When every car has renewed: `use KEYID` and restart the dispatcher.
    3. `retire OLD`: answers no longer name it.
    """  # noqa: D400 - what follows is the list
    home = House(house)
    authority = home.open()
    keys = sorted(path.stem for path in authority.signing_folder.glob("*.key"))
    if action == "list":
        print("\n".join(keys))
    elif action == "new":
        print(authority.new_signing_key())
    elif key_id is None or key_id not in keys:
        raise ConfigError(f"{action} needs a key of this authority: {', '.join(keys)}")
    elif action == "use":
        from edge_runtime.pki.house import use_signing_key

        use_signing_key(authority, home, key_id)
        print(f"{home.dispatcher / 'signing.key'} is {key_id}; restart the dispatcher")
    else:
        authority.retire_signing_key(key_id)
        print(f"{key_id}: retired")


# --- inside -------------------------------------------------------------------------------------


def _enrol_here(home: House, authority: "Authority", name: str, days: int) -> None:
    from edge_runtime.pki.authority import Grant, Role
    from edge_runtime.pki.house import enrol

    folder = home.car(name)
    _print_validity(enrol(authority, folder, Grant(Role.CAR, name, days)), folder)


def _print_validity(validity: "Validity", folder: Path) -> None:
    print(
        f"{validity.name}  {folder}  until {validity.ends:%Y-%m-%d %H:%M} UTC, "
        f"renewed from {validity.renewal:%Y-%m-%d %H:%M} UTC"
    )


def _passphrase(path: Path | None) -> bytes | None:
    if path is not None:
        return readable_file("--passphrase-file", path).read_bytes().rstrip(b"\r\n") or None
    value = os.environ.get(_PASSPHRASE_VARIABLE)
    return value.encode() if value else None


def _renew_by(command: list[str], folder: "IdentityFolder", name: str) -> "Validity":
    """Let a command fetch the answer to a new request. Raises PkiError, PkiRefused."""
    if not command:
        raise ConfigError("--hook names no command")
    request = folder.ask(name)
    environment = {**os.environ, _REQUEST_VARIABLE: str(folder.request.resolve())}
    try:
        done = subprocess.run(
            command,
            input=request,
            stdout=subprocess.PIPE,
            timeout=limits.RENEWAL_RUN_MAX_S / 2,
            check=True,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise PkiError(
            f"{command[0]}: no answer within {limits.RENEWAL_RUN_MAX_S / 2:g} s"
        ) from None
    except subprocess.CalledProcessError as error:
        raise PkiError(f"{command[0]}: exit code {error.returncode}") from None
    if len(done.stdout) > limits.PKI_FILE_MAX_BYTES:
        raise PkiError(f"{command[0]}: an answer over {limits.PKI_FILE_MAX_BYTES} bytes")
    return folder.accept(done.stdout)


async def _kick(broker: str, identity: Path, name: str) -> None:
    """Be `name` for one clean session: the broker ends the other one. Raises BusError."""
    from edge_runtime.bus import BusSettings, Connected, Disconnected, open_bus

    tls = TlsOptions(identity=identity).settings(broker)
    async with open_bus(BusSettings(broker, name, session_expiry_s=0, tls=tls)) as bus:
        async for event in bus.events():
            match event:
                case Connected():
                    return
                case Disconnected(reason=reason):
                    raise RemoteError(f"{broker}: {reason}")
                case _:
                    continue
