"""The golden vectors: fixed messages whose bytes are kept under `schemas/golden/`.

A vector is never edited or removed: its bytes on disk are what a peer of that day sends, and
must decode to the message below for good. A message that gains a field keeps its vectors (the
new field takes its default) and gets a new vector that fills it.

Deliberately absent: clocks, random values, and anything iterated from an enum (a new member
must not change old bytes). Messages of future versions are made by the tests, not kept here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from edge_runtime.contract import codec, limits
from edge_runtime.contract.errors import ConfigError, Rejected
from edge_runtime.contract.messages import (
    INTERACTIVE_JOB,
    Acks,
    Birth,
    Cancel,
    Cancelled,
    Chunk,
    ChunkAnswer,
    Control,
    Desired,
    Drain,
    Ending,
    Fence,
    FetchSince,
    FleetAggregate,
    HostStatus,
    Item,
    ItemDone,
    ItemFailed,
    JobResults,
    JobStatus,
    Offline,
    OutputReference,
    Rebirth,
    Reference,
    Refused,
    RequestRefused,
    ResultEntry,
    ResultError,
    Results,
    Signed,
    StopReport,
    Taken,
    Tokens,
    UnitOffer,
    Usage,
    VehicleLimits,
    VehicleState,
    WorkOffer,
)
from edge_runtime.contract.reasons import (
    Availability,
    CancelReason,
    ChunkVerdict,
    EnergyMethod,
    FinishReason,
    HoldReason,
    ItemError,
    JobState,
    Outcome,
    RefusalReason,
    ReleaseReason,
    RequestRefusal,
    StopTier,
    WearMethod,
)
from edge_runtime.contract.signals import Signals


@dataclass(frozen=True, slots=True)
class Golden:
    """One vector: its file is `{name}.msgpack`, `channel` names the topic it travels on."""

    name: str
    channel: str
    message: msgspec.Struct
    description: str


class GoldenChanged(ConfigError):  # noqa: N818 - named for what happened
    """Stored bytes no longer mean what the code says; `names` are the vectors."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(
            f"golden vectors are append-only and these changed: {', '.join(names)}; "
            "restore the message (new fields last, with defaults) or add a new vector"
        )
        self.names = names


DECODERS: Final[Mapping[type, Callable[[bytes], Any]]] = {
    Birth: codec.status_decoder().decode,
    Offline: codec.status_decoder().decode,
    VehicleState: codec.state_decoder().decode,
    Acks: codec.acks_decoder().decode,
    Results: codec.results_decoder().decode,
    WorkOffer: codec.work_decoder().decode,
    Control: codec.control_decoder().decode,
    Desired: codec.desired_decoder().decode,
    Signed: codec.signed_decoder().decode,
    HostStatus: codec.host_decoder().decode,
    JobResults: codec.decode_public,
    JobStatus: codec.decode_public,
    FleetAggregate: codec.decode_public,
    FetchSince: codec.decode_request,
    RequestRefused: codec.decode_public,
}
"""How each message that is a payload of its own is decoded."""


def golden_files(stored: Mapping[str, bytes]) -> dict[str, bytes]:
    """`{name}.msgpack` of every vector: the stored bytes where there are some, else new ones.

    Raises `GoldenChanged` when stored bytes do not decode to the vector's message.
    """
    files = {f"{vector.name}.msgpack": codec.encode(vector.message) for vector in GOLDEN}
    changed = []
    for vector in GOLDEN:
        name = f"{vector.name}.msgpack"
        if name in stored and not _means(stored[name], vector.message):
            changed.append(vector.name)
        files[name] = stored.get(name, files[name])
    if changed:
        raise GoldenChanged(changed)
    return files


def _means(payload: bytes, message: msgspec.Struct) -> bool:
    try:
        return bool(DECODERS[type(message)](payload) == message)
    except Rejected:
        return False


_CAR: Final = "k3Jq8vLw2ZpX7rTn"
_BOOT: Final = 1_764_000_000
_NOW_MS: Final = 1_764_000_123_456
_JOB: Final = "j-7Fq2mX9cVb4L"
_MODEL: Final = "0123456789abcdef" * 4
_OTHER_MODEL: Final = "fedcba9876543210" * 4
_FENCE: Final = Fence(_BOOT - 500, 17)
_LAST_FENCE: Final = Fence(limits.COUNT_MAX, limits.COUNT_MAX)
_TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(codec.encode(value))


_STATUS: Final = (
    Golden(
        "birth",
        "vehicleStatus",
        Birth(
            vehicle=_CAR,
            boot=_BOOT,
            connection=3,
            contract=1,
            runtime="0.1.0",
            vss="6.0",
            hardware="x86_64-avx512",
            tasks=("tensor", "object-detection", "image-to-text"),
            resident=(_MODEL, _OTHER_MODEL),
            limits=VehicleLimits(units_max=8, message_max_bytes=131_072),
            region="eu-north",
        ),
        "A car that holds two models came up in a named region.",
    ),
    Golden(
        "birth-empty",
        "vehicleStatus",
        Birth(
            vehicle="a",
            boot=0,
            connection=0,
            contract=1,
            runtime="",
            vss="",
            hardware="",
            tasks=(),
            resident=(),
            limits=VehicleLimits(units_max=4, message_max_bytes=262_144),
        ),
        "The least a Birth can say.",
    ),
    Golden(
        "offline",
        "vehicleStatus",
        Offline(vehicle=_CAR, boot=_BOOT, connection=3),
        "The Will of a connection, or a car's own farewell.",
    ),
)

_STATE: Final = (
    Golden(
        "state-ready",
        "vehicleState",
        VehicleState(
            vehicle=_CAR,
            boot=_BOOT,
            seq=1234,
            at_ms=_NOW_MS,
            availability=Availability.READY,
            hold=None,
            free_units=4,
            energy_budget_wh=850.5,
            signals=Signals(
                charge_percent=81.5,
                battery_temperature_c=24.25,
                is_plugged=True,
                is_charging=False,
                is_parked=True,
                is_occupied=False,
                compute_temperature_c=41.0,
                compute_load_percent=3.5,
            ),
        ),
        "A parked, plugged car with the usual readings: the size that matters.",
    ),
    Golden(
        "state-no-readings",
        "vehicleState",
        VehicleState(
            vehicle=_CAR,
            boot=_BOOT,
            seq=0,
            at_ms=_NOW_MS,
            availability=Availability.HOLD,
            hold=HoldReason.SENSOR_STALE,
            free_units=0,
            energy_budget_wh=None,
            signals=Signals(),
        ),
        "Every reading missing: None is not zero.",
    ),
    Golden(
        "state-full",
        "vehicleState",
        VehicleState(
            vehicle="Z" * limits.ID_MAX_CHARS,
            boot=limits.COUNT_MAX,
            seq=limits.COUNT_MAX,
            at_ms=limits.COUNT_MAX,
            availability=Availability.WORKING,
            hold=HoldReason.COMPUTE_HOT,
            free_units=65_535,
            energy_budget_wh=-12.5,
            signals=Signals(
                charge_percent=100.0,
                battery_temperature_c=-40.5,
                battery_power_w=-11_000.0,
                is_plugged=True,
                is_charging=True,
                is_parked=True,
                is_occupied=True,
                ambient_temperature_c=-12.75,
                compute_temperature_c=97.5,
                compute_power_w=310.25,
                compute_load_percent=99.0,
                low_voltage_v=12.625,
                power_saving_level=255,
            ),
            resident=(_MODEL, _OTHER_MODEL, "0" * 64, "f" * 64),
        ),
        "Every field set, numbers and id at their largest.",
    ),
)

_ACKS: Final = (
    Golden(
        "acks",
        "vehicleAck",
        Acks(
            vehicle=_CAR,
            boot=_BOOT,
            verdicts=(
                Taken(unit=41, fence=_FENCE),
                Refused(
                    unit=42,
                    fence=_FENCE,
                    reason=RefusalReason.HOLD,
                    retry_after_ms=30_000,
                    hold=HoldReason.NOT_PLUGGED,
                ),
                Refused(unit=43, fence=_FENCE, reason=RefusalReason.BUSY, retry_after_ms=0),
                Cancelled(unit=44, fence=_FENCE),
            ),
        ),
        "One verdict of each kind.",
    ),
    Golden(
        "acks-largest-ids",
        "vehicleAck",
        Acks(
            vehicle=_CAR,
            boot=limits.COUNT_MAX,
            verdicts=(Taken(unit=limits.COUNT_MAX, fence=_LAST_FENCE),),
        ),
        "Unit and fence at their largest.",
    ),
)

_RESULTS: Final = (
    Golden(
        "results-reference",
        "vehicleResult",
        Results(
            vehicle=_CAR,
            boot=_BOOT,
            chunks=(
                Chunk(
                    job=_JOB,
                    unit=45,
                    fence=_FENCE,
                    model=_MODEL,
                    seq=0,
                    items=(
                        ItemDone(
                            index=0,
                            output=_raw(None),
                            busy_ms=12.5,
                            ref=Reference(
                                sha256=_OTHER_MODEL,
                                length=3_000_000,
                                url=f"/objects/for-cars/acme/0123456789abcdef/{_JOB}/{_OTHER_MODEL}",
                            ),
                        ),
                    ),
                    ending=Ending(outcome=Outcome.COMPLETED),
                ),
            ),
        ),
        "An output that was too large to travel inline, and was put where the offer said.",
    ),
    Golden(
        "results",
        "vehicleResult",
        Results(
            vehicle=_CAR,
            boot=_BOOT,
            chunks=(
                Chunk(
                    job=_JOB,
                    unit=41,
                    fence=_FENCE,
                    model=_MODEL,
                    seq=0,
                    items=(
                        ItemDone(
                            index=0,
                            output=_raw({"boxes": [[1.5, 2.5, 30.0, 40.0]], "scores": [0.875]}),
                            busy_ms=12.5,
                        ),
                        ItemDone(index=1, output=_raw(None)),
                        ItemDone(index=2, output=_raw(b"\x00\xff")),
                    ),
                    energy_j=1.25,
                    busy_ms=37.5,
                    load_ms=180.0,
                ),
                Chunk(
                    job=_JOB,
                    unit=41,
                    fence=_FENCE,
                    model=_MODEL,
                    seq=1,
                    items=(
                        ItemFailed(index=3, code=ItemError.UNDECODABLE_INPUT, message="not a JPEG"),
                        ItemFailed(index=4, code=ItemError.ENGINE_KILLED),
                    ),
                    ending=Ending(outcome=Outcome.COMPLETED),
                ),
            ),
        ),
        "Two chunks of one attempt: outputs of several shapes, failures, completed.",
    ),
    Golden(
        "results-tokens",
        "vehicleResult",
        Results(
            vehicle=_CAR,
            boot=_BOOT,
            chunks=(
                Chunk(
                    job=INTERACTIVE_JOB,
                    unit=43,
                    fence=_FENCE,
                    model=_MODEL,
                    seq=2,
                    items=(),
                    tokens=(
                        Tokens(index=0, offset=16, ids=(504, 3575), text=" The capital"),
                        Tokens(index=1, offset=0, ids=(), text="", finish=FinishReason.LENGTH),
                    ),
                ),
            ),
        ),
        "Tokens of two items of an interactive unit, one of which has its last.",
    ),
    Golden(
        "results-usage",
        "vehicleResult",
        Results(
            vehicle=_CAR,
            boot=_BOOT,
            chunks=(
                Chunk(
                    job=_JOB,
                    unit=41,
                    fence=_FENCE,
                    model=_MODEL,
                    seq=2,
                    items=(ItemDone(index=5, output=_raw(None), busy_ms=250.0),),
                    energy_j=3.5,
                    busy_ms=250.0,
                    usage=Usage(
                        energy_method=EnergyMethod.CALIBRATED_MODEL,
                        wear_percent=0.000001,
                        wear_method=WearMethod.WORST_CELL_TABLE,
                    ),
                ),
            ),
        ),
        "What an item took from its car, and how the car knows.",
    ),
    Golden(
        "results-released",
        "vehicleResult",
        Results(
            vehicle=_CAR,
            boot=_BOOT,
            chunks=(
                Chunk(
                    job=_JOB,
                    unit=limits.COUNT_MAX,
                    fence=_LAST_FENCE,
                    model=_MODEL,
                    seq=limits.COUNT_MAX,
                    items=(),
                    ending=Ending(
                        outcome=Outcome.RELEASED,
                        reason=ReleaseReason.HOLD,
                        hold=HoldReason.OCCUPIED,
                        stop=StopReport(tier=StopTier.FREEZE, latency_ms=0.125),
                    ),
                ),
            ),
        ),
        "The owner came back: a last chunk without items says why and how fast it stopped.",
    ),
)

_WORK: Final = (
    Golden(
        "work",
        "vehicleWork",
        WorkOffer(
            vehicle=_CAR,
            units=(
                UnitOffer(
                    job=_JOB,
                    unit=41,
                    fence=_FENCE,
                    tenant="acme",
                    purpose="anonymisation",
                    task="object-detection",
                    model=_MODEL,
                    items=(
                        Item(index=0, media_type="image/jpeg", data=b"\xff\xd8\xff\xe0"),
                        Item(index=1, media_type="text/plain;charset=utf-8", data=b"caf\xc3\xa9"),
                    ),
                    parameters=_raw({"threshold": 0.5}),
                    deadline_ms=_NOW_MS + 60_000,
                    remaining_ms=60_000,
                    lease_ms=30_000,
                    traceparent=_TRACE,
                ),
                UnitOffer(
                    job=_JOB,
                    unit=limits.COUNT_MAX,
                    fence=_LAST_FENCE,
                    tenant="acme",
                    purpose="default",
                    task="tensor",
                    model=_OTHER_MODEL,
                    items=(Item(index=limits.COUNT_MAX, media_type="", data=b""),),
                    parameters=_raw(None),
                    deadline_ms=limits.COUNT_MAX,
                    remaining_ms=0,
                    lease_ms=0,
                ),
            ),
        ),
        "Body of an offer of two units; the second at its largest numbers and without trace.",
    ),
    Golden(
        "work-interactive",
        "vehicleWork",
        WorkOffer(
            vehicle=_CAR,
            units=(
                UnitOffer(
                    job=INTERACTIVE_JOB,
                    unit=43,
                    fence=_FENCE,
                    tenant="acme",
                    purpose="default",
                    task="text-generation",
                    model=_MODEL,
                    items=(Item(index=0, media_type="application/json", data=b"{}"),),
                    parameters=_raw({}),
                    deadline_ms=_NOW_MS + 60_000,
                    remaining_ms=60_000,
                    lease_ms=60_000,
                    interactive=True,
                ),
            ),
        ),
        "Body of an offer of a unit whose requester waits: nothing of it is kept.",
    ),
    Golden(
        "work-by-reference",
        "vehicleWork",
        WorkOffer(
            vehicle=_CAR,
            units=(
                UnitOffer(
                    job=_JOB,
                    unit=44,
                    fence=_FENCE,
                    tenant="acme",
                    purpose="batch",
                    task="tensor",
                    model=_MODEL,
                    items=(
                        Item(
                            index=0,
                            media_type="image/png",
                            data=b"",
                            ref=Reference(
                                sha256=_OTHER_MODEL,
                                length=3_000_000,
                                url=f"/objects/for-cars/acme/0123456789abcdef/{_OTHER_MODEL}",
                            ),
                        ),
                    ),
                    parameters=_raw({}),
                    deadline_ms=_NOW_MS + 60_000,
                    remaining_ms=60_000,
                    lease_ms=30_000,
                ),
            ),
        ),
        "Body of an offer of a unit with an input that the car has to fetch.",
    ),
    Golden(
        "work-outputs",
        "vehicleWork",
        WorkOffer(
            vehicle=_CAR,
            units=(
                UnitOffer(
                    job=_JOB,
                    unit=45,
                    fence=_FENCE,
                    tenant="acme",
                    purpose="batch",
                    task="tensor",
                    model=_MODEL,
                    items=(Item(index=0, media_type="image/png", data=b"\x89PNG"),),
                    parameters=_raw({}),
                    deadline_ms=_NOW_MS + 60_000,
                    remaining_ms=60_000,
                    lease_ms=30_000,
                    outputs=f"/objects/for-cars/acme/0123456789abcdef/{_JOB}",
                ),
            ),
        ),
        "Body of an offer of a unit whose large outputs may be put under a path.",
    ),
    Golden(
        "signed-work",
        "vehicleWork",
        Signed(
            key_id="",
            signature=b"",
            # As a peer of that day encoded it: a body has no field that came later.
            body=codec.encode(
                (
                    "work",
                    _CAR,
                    (
                        (
                            _JOB,
                            1,
                            _FENCE,
                            "acme",
                            "default",
                            "feature-extraction",
                            _MODEL,
                            ((0, "text/plain", b"hello"),),
                            {},
                            _NOW_MS,
                            1,
                            30_000,
                            None,
                        ),
                    ),
                )
            ),
        ),
        "What really travels on a dn topic: the envelope, its signature empty.",
    ),
)

_CONTROL: Final = (
    Golden(
        "control",
        "vehicleControl",
        Control(
            vehicle=_CAR,
            orders=(
                ChunkAnswer(unit=41, fence=_FENCE, through_seq=7, verdict=ChunkVerdict.STORED),
                Cancel(unit=42, fence=_FENCE, reason=CancelReason.JOB_CANCELLED),
                Drain(active=True),
                Rebirth(delay_max_ms=2_000),
            ),
        ),
        "Body with one order of each kind.",
    ),
    Golden(
        "control-answer-range",
        "vehicleControl",
        Control(
            vehicle=_CAR,
            orders=(
                ChunkAnswer(
                    unit=41,
                    fence=_FENCE,
                    first_seq=3,
                    through_seq=5,
                    verdict=ChunkVerdict.ALREADY_HAVE,
                ),
            ),
        ),
        "Body: chunks 3 to 5 may be forgotten, earlier ones not yet.",
    ),
    Golden(
        "control-rebirth-now",
        "vehicleControl",
        Control(vehicle=_CAR, orders=(Rebirth(), Drain(active=False))),
        "Body: publish Birth at once, take work again.",
    ),
    Golden(
        "desired",
        "vehicleDesired",
        Desired(vehicle=_CAR, models=(_MODEL, _OTHER_MODEL), policy_version=9),
        "Body: hold these two models.",
    ),
    Golden(
        "desired-nothing",
        "vehicleDesired",
        Desired(vehicle=_CAR, models=()),
        "Body: hold nothing in particular.",
    ),
    Golden(
        "signed-control",
        "vehicleControl",
        Signed(
            key_id="2026-01",
            signature=bytes(range(64)),
            body=codec.encode(Control(vehicle=_CAR, orders=(Drain(active=False),))),
        ),
        "The envelope with a key id and 64 bytes of signature.",
    ),
)

_HOST: Final = (
    Golden(
        "host-online",
        "hostStatus",
        HostStatus(
            dispatcher="d-1",
            epoch=_BOOT,
            online=True,
            shards=("00", "7f", "ff"),
            models_url="http://dispatcher.example:8080/v1/models/",
        ),
        "A dispatcher that serves three shards.",
    ),
    Golden(
        "host-offline",
        "hostStatus",
        HostStatus(dispatcher="d-1", epoch=_BOOT, online=False),
        "Its Will.",
    ),
)

_PUBLIC: Final = (
    Golden(
        "job-results",
        "jobResults",
        JobResults(
            job=_JOB,
            results=(
                ResultEntry(
                    cursor=1, item=4, at_ms=_NOW_MS, output=_raw({"text": "STOP"}), vehicle=_CAR
                ),
                ResultEntry(
                    cursor=2,
                    item=0,
                    at_ms=_NOW_MS + 1,
                    error=ResultError(
                        code=ItemError.MODEL_ERROR, message="shape mismatch", attempts=3
                    ),
                ),
                ResultEntry(cursor=3, item=1, at_ms=_NOW_MS + 1, output=_raw(None)),
            ),
        ),
        "An output, a failure, and an output that is nil.",
    ),
    Golden(
        "job-results-reference",
        "jobResults",
        JobResults(
            job=_JOB,
            results=(
                ResultEntry(
                    cursor=4,
                    item=2,
                    at_ms=_NOW_MS,
                    vehicle=_CAR,
                    ref=OutputReference(
                        sha256=_OTHER_MODEL, length=3_000_000, url=f"/objects/{_OTHER_MODEL}"
                    ),
                ),
            ),
        ),
        "An output that is to be downloaded.",
    ),
    Golden(
        "job-status-running",
        "jobStatus",
        JobStatus(
            job=_JOB,
            tenant="acme",
            model=_MODEL,
            state=JobState.RUNNING,
            items=120,
            done=61,
            failed=1,
            last_cursor=62,
            submitted_ms=_NOW_MS,
            deadline_ms=_NOW_MS + 86_400_000,
        ),
        "Half way.",
    ),
    Golden(
        "job-status-done",
        "jobStatus",
        JobStatus(
            job=_JOB,
            tenant="acme",
            model=_MODEL,
            state=JobState.DONE,
            items=2,
            done=2,
            failed=0,
            last_cursor=2,
            submitted_ms=_NOW_MS,
            deadline_ms=_NOW_MS + 1_000,
            finished_ms=_NOW_MS + 999,
        ),
        "Ended: last_cursor is the last there will be.",
    ),
    Golden(
        "job-status-traced",
        "jobStatus",
        JobStatus(
            job=_JOB,
            tenant="acme",
            model=_MODEL,
            state=JobState.RUNNING,
            items=120,
            done=61,
            failed=1,
            last_cursor=62,
            submitted_ms=_NOW_MS,
            deadline_ms=_NOW_MS + 86_400_000,
            traceparent=_TRACE,
        ),
        "Half way; the request that made the job was traced.",
    ),
    Golden(
        "job-results-traced",
        "jobResults",
        JobResults(
            job=_JOB,
            results=(ResultEntry(cursor=1, item=4, at_ms=_NOW_MS, output=_raw(None)),),
            traceparent=_TRACE,
        ),
        "The request that made the job was traced.",
    ),
    Golden(
        "fetch-since",
        "tenantRequest",
        FetchSince(job=_JOB, cursor=41, respond_to="er/1/t/acme/replies/r1"),
        "A reader's gap, asked for without MQTT 5.",
    ),
    Golden(
        "fetch-since-start",
        "tenantRequest",
        FetchSince(job=_JOB, cursor=0),
        "From the start; the answer goes to the message's response topic.",
    ),
    Golden(
        "fleet",
        "fleet",
        FleetAggregate(
            region="eu-north",
            at_ms=_NOW_MS,
            cars=1_000_000,
            ready=400_000,
            working=50_000,
            held=500_000,
            offline=50_000,
        ),
        "A region's capacity.",
    ),
    Golden(
        "job-results-answer",
        "tenantAnswer",
        JobResults(
            job=_JOB,
            results=(
                ResultEntry(cursor=43, item=7, at_ms=_NOW_MS, output=_raw([1, 2]), vehicle=_CAR),
            ),
            since=41,
            status=JobStatus(
                job=_JOB,
                tenant="acme",
                model=_MODEL,
                state=JobState.RUNNING,
                items=120,
                done=42,
                failed=0,
                last_cursor=43,
                submitted_ms=_NOW_MS,
                deadline_ms=_NOW_MS + 86_400_000,
            ),
        ),
        "What follows cursor 41: a failure at 42 is run again.",
    ),
    Golden(
        "job-results-nothing-newer",
        "tenantAnswer",
        JobResults(
            job=_JOB,
            results=(),
            since=2,
            status=JobStatus(
                job=_JOB,
                tenant="acme",
                model=_MODEL,
                state=JobState.DONE,
                items=2,
                done=2,
                failed=0,
                last_cursor=2,
                submitted_ms=_NOW_MS,
                deadline_ms=_NOW_MS + 1_000,
                finished_ms=_NOW_MS + 999,
            ),
        ),
        "Nothing follows cursor 2, and nothing will: the job is done.",
    ),
    Golden(
        "request-refused",
        "tenantAnswer",
        RequestRefused(
            reason=RequestRefusal.RATE_EXCEEDED, job=_JOB, since=41, retry_after_ms=1_500
        ),
        "Too many requests of this tenant.",
    ),
    Golden(
        "request-refused-malformed",
        "tenantAnswer",
        RequestRefused(reason=RequestRefusal.MALFORMED),
        "No request of this contract.",
    ),
)

GOLDEN: Final[tuple[Golden, ...]] = (
    *_STATUS,
    *_STATE,
    *_ACKS,
    *_RESULTS,
    *_WORK,
    *_CONTROL,
    *_HOST,
    *_PUBLIC,
)
"""Every vector, in the order of DESIGN §5. Append to a group; never edit or remove."""
