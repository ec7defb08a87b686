"""Mosquitto's configuration for mTLS, as files: the ones in `broker/` and those of `pki init`.

What each line closes is said beside it and in broker/README.md; tests run a real Mosquitto with
these very texts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_runtime.contract.limits import (
    BUS_INBOUND_MAX_MESSAGES,
    BUS_INFLIGHT_MAX_MESSAGES,
    BUS_OUTBOUND_MAX_BYTES,
    BUS_PACKET_MAX_BYTES,
)

CONFIGURATION: Final = "mosquitto.conf"
ACL_CARS: Final = "acl-cars"
ACL_DISPATCHERS: Final = "acl-dispatchers"
ACL_TENANTS: Final = "acl-tenants"
TENANT_PASSWORDS: Final = "tenants.passwd"


@dataclass(frozen=True, slots=True)
class BrokerLayout:
    """Where a broker's files are and where it listens; `user` is whom a root-started one becomes.

    `acl_cars`, `acl_dispatchers` and `acl_tenants` lie in `folder` as well.
    """

    folder: str
    data: str
    user: str | None = None
    cars_port: int = 8883
    services_port: int = 8884
    tenants_port: int = 8885
    address: str = ""


_TEXT: Final = """\
# Mosquitto 2 with mutual TLS for edge-runtime: one cell of cars, its dispatchers, some tenants.
# `edge-runtime pki init` writes this file with the paths of its folder; why it is as it is:
# broker/README.md.
{user}
# Each listener trusts its own authority and has its own ACL.
per_listener_settings true

# --- cars: certificate of the cars' authority ---------------------------------------------
listener {cars_port}{address}
cafile {folder}/cars-ca.pem
certfile {folder}/identity.pem
keyfile {folder}/identity.pem
# Read again on SIGHUP; ends no session (see README: revoking).
crlfile {folder}/cars-crl.pem
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
# Without this a car that uses another's client id throws it off and destroys its queue.
use_username_as_clientid true
allow_anonymous false
acl_file {folder}/acl-cars

# --- dispatchers: certificate of the services' authority ------------------------------------
# Client ids are free here: this is how a revoked car's session is ended. Nobody else comes in.
listener {services_port}{address}
cafile {folder}/services-ca.pem
certfile {folder}/identity.pem
keyfile {folder}/identity.pem
crlfile {folder}/services-crl.pem
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
allow_zero_length_clientid false
allow_anonymous false
acl_file {folder}/acl-dispatchers

# --- tenants and other third parties: TLS and a password ------------------------------------
listener {tenants_port}{address}
certfile {folder}/identity.pem
keyfile {folder}/identity.pem
tls_version tlsv1.2
password_file {folder}/tenants.passwd
# As for cars: with a free client id a tenant could throw off a car.
use_username_as_clientid true
allow_anonymous false
acl_file {folder}/acl-tenants

# --- limits (they match edge_runtime/contract/limits.py) --------------------------------------
max_packet_size {packet}
max_inflight_messages {inflight}
# What may wait for one slow or absent client. Above it Mosquitto drops and tells the publisher
# nothing; the application re-sends.
max_queued_messages {queued}
max_queued_bytes {queued_bytes}
queue_qos0_messages false

# --- latency ----------------------------------------------------------------------------------
# Nagle's algorithm and delayed acknowledgements cost 44 ms each way.
set_tcp_nodelay true

# --- what survives ----------------------------------------------------------------------------
persistence true
persistence_location {data}/
autosave_interval 60
persistent_client_expiration 1d

log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
"""

_CARS: Final = """\
# What a car may do. %u is its user name, which is its vehicle id (and its client id).
# Everything that is not written here is denied.

# To the car: work, control and the desired state, and which dispatcher serves which shard.
pattern read er/1/+/v/%u/dn/#
pattern read er/1/host/+

# From the car.
pattern write er/1/+/v/%u/up/#

# The canary: a message to itself, by which a car notices a refusal that MQTT 3.1.1 and
# Mosquitto's SUBSCRIBE hide.
pattern read er/1/+/v/%u/up/canary
"""

_DISPATCHERS: Final = """\
# Whoever has a client certificate of the services' authority is a dispatcher.
pattern readwrite er/#
"""

_TENANTS: Final = """\
# What tenants may do, user by user. Everything that is not written here is denied.
# `edge-runtime pki tenant` adds and removes blocks and passwords; by hand: copy and rename.

user tenant-demo
topic read er/1/t/demo/#
topic write er/1/t/demo/request
topic read er/1/pub/fleet/#
"""

ACLS: Final = {ACL_CARS: _CARS, ACL_DISPATCHERS: _DISPATCHERS, ACL_TENANTS: _TENANTS}
"""File name -> text of each listener's ACL."""

STANDARD: Final = BrokerLayout(
    folder="/etc/mosquitto/edge-runtime", data="/var/lib/mosquitto", user=None
)
"""What `broker/mosquitto-tls.conf` says: Debian's folders."""


def configuration(layout: BrokerLayout) -> str:
    """The text of mosquitto.conf for a layout."""
    user = "" if layout.user is None else f"\nuser {layout.user}\n"
    return _TEXT.format(
        user=user,
        folder=layout.folder,
        data=layout.data,
        cars_port=layout.cars_port,
        services_port=layout.services_port,
        tenants_port=layout.tenants_port,
        address=f" {layout.address}" if layout.address else "",
        packet=BUS_PACKET_MAX_BYTES,
        inflight=BUS_INFLIGHT_MAX_MESSAGES,
        queued=BUS_INBOUND_MAX_MESSAGES,
        queued_bytes=BUS_OUTBOUND_MAX_BYTES,
    )


def write_broker_files(folder: Path, layout: BrokerLayout) -> None:
    """Write mosquitto.conf, the ACLs and an empty list of tenants; accounts that are there stay.

    Raises OSError.
    """
    tenants = folder / TENANT_PASSWORDS
    (folder / CONFIGURATION).write_text(configuration(layout))
    for name, text in ACLS.items():
        if name != ACL_TENANTS or not tenants.exists():
            (folder / name).write_text(text)
    Path(layout.data).mkdir(parents=True, exist_ok=True)
    tenants.touch(mode=0o600, exist_ok=True)
