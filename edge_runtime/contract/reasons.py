"""The closed lists of reasons that travel: why no work, why not this offer, why this end.

Each list ends with `UNKNOWN`: a reason that a newer peer sends and this side does not know
decodes as that and is counted, never an error (design §5). Members are append-only.
"""

from enum import Enum
from typing import Any, Self


class WireEnum(Enum):
    """A string enum whose unknown values decode as `UNKNOWN` (msgspec honours `_missing_`)."""

    @classmethod
    def _missing_(cls, value: Any) -> Self | None:
        if isinstance(value, str):
            return cls["UNKNOWN"]
        return None


class Availability(WireEnum):
    """What a car is doing, as admission decided it."""

    DRIVING = "driving"
    HOLD = "hold"
    READY = "ready"
    WORKING = "working"
    STOPPING = "stopping"
    UNKNOWN = "unknown"


class HoldReason(WireEnum):
    """Why a car takes no work now, whatever the offer."""

    CONSENT_MISSING = "consent_missing"
    CONSENT_WITHDRAWN = "consent_withdrawn"
    OWNER_PAUSED = "owner_paused"
    OUTSIDE_SCHEDULE = "outside_schedule"
    DEPARTURE_SOON = "departure_soon"
    NOT_PARKED = "not_parked"
    OCCUPIED = "occupied"
    NOT_PLUGGED = "not_plugged"
    CHARGE_LOW = "charge_low"
    BATTERY_HOT = "battery_hot"
    BATTERY_COLD = "battery_cold"
    COMPUTE_HOT = "compute_hot"
    ENERGY_BUDGET_SPENT = "energy_budget_spent"
    TARIFF_HIGH = "tariff_high"
    NETWORK_METERED = "network_metered"
    DATA_BUDGET_SPENT = "data_budget_spent"
    WEAR_BUDGET_SPENT = "wear_budget_spent"
    LOW_VOLTAGE_LOW = "low_voltage_low"
    POWER_SAVING = "power_saving"
    SENSOR_STALE = "sensor_stale"
    SENSOR_INVALID = "sensor_invalid"
    CLOCK_UNTRUSTED = "clock_untrusted"
    POLICY_INVALID = "policy_invalid"
    STORAGE_FULL = "storage_full"
    STORAGE_ERROR = "storage_error"
    ENGINE_UNHEALTHY = "engine_unhealthy"
    DRAINING = "draining"
    DWELL = "dwell"
    AMBIENT_OUT_OF_RANGE = "ambient_out_of_range"
    CABIN_OUT_OF_RANGE = "cabin_out_of_range"
    JURISDICTION_NOT_ALLOWED = "jurisdiction_not_allowed"
    CYCLES_SPENT = "cycles_spent"
    UNKNOWN = "unknown"


class RefusalReason(WireEnum):
    """Why a car refused one offer."""

    HOLD = "hold"
    BUSY = "busy"
    EXPIRED = "expired"
    TOO_LARGE = "too_large"
    TENANT_NOT_ALLOWED = "tenant_not_allowed"
    PURPOSE_NOT_ALLOWED = "purpose_not_allowed"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    MODEL_UNAVAILABLE = "model_unavailable"
    MODEL_INVALID = "model_invalid"
    TASK_UNKNOWN = "task_unknown"
    STORAGE_FULL = "storage_full"
    STALE_FENCE = "stale_fence"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class Outcome(WireEnum):
    """How an attempt ended on its car."""

    COMPLETED = "completed"
    RELEASED = "released"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class FinishReason(WireEnum):
    """Why a generation has all its tokens; the words are those of the OpenAI API."""

    STOP = "stop"
    LENGTH = "length"
    UNKNOWN = "unknown"


class ReleaseReason(WireEnum):
    """Why an attempt was given back before its end."""

    HOLD = "hold"
    REBOOT = "reboot"
    DEADLINE = "deadline"
    ENGINE_DIED = "engine_died"
    MODEL_UNAVAILABLE = "model_unavailable"
    DRAINING = "draining"
    STORAGE_FULL = "storage_full"
    INPUT_UNAVAILABLE = "input_unavailable"
    """An input that travels by reference could not be fetched."""
    UNKNOWN = "unknown"


class StopTier(WireEnum):
    """The rung of the stop ladder that ended the computation."""

    NONE = "none"
    TERMINATE = "terminate"
    FREEZE = "freeze"
    KILL = "kill"
    UNKNOWN = "unknown"


class ItemError(WireEnum):
    """Why one item failed.

    `is_final` codes blame the input alone and end the item at once; the others may be the
    car's fault and are retried alone on other cars first (design §7, poison).
    """

    UNDECODABLE_INPUT = "undecodable_input"
    WRONG_SHAPE = "wrong_shape"
    WRONG_DATATYPE = "wrong_datatype"
    INPUT_TOO_LARGE = "input_too_large"
    RESULT_TOO_LARGE = "result_too_large"
    INVALID_PARAMETERS = "invalid_parameters"
    MODEL_ERROR = "model_error"
    OUT_OF_MEMORY = "out_of_memory"
    ENGINE_KILLED = "engine_killed"
    ENGINE_HUNG = "engine_hung"
    CAR_REBOOTED = "car_rebooted"
    DEADLINE_PASSED = "deadline_passed"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    INPUT_UNAVAILABLE = "input_unavailable"
    """What its reference leads to is gone, or is not what the reference says."""
    OUTPUT_UNAVAILABLE = "output_unavailable"
    """Its output is too large to travel inline, and could not be kept or handed over."""
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether no other car could do better."""
        return self in _FINAL_ITEM_ERRORS


_FINAL_ITEM_ERRORS = frozenset(
    {
        ItemError.UNDECODABLE_INPUT,
        ItemError.WRONG_SHAPE,
        ItemError.WRONG_DATATYPE,
        ItemError.INPUT_TOO_LARGE,
        ItemError.RESULT_TOO_LARGE,
        ItemError.INVALID_PARAMETERS,
        ItemError.DEADLINE_PASSED,
        ItemError.TOO_MANY_ATTEMPTS,
    }
)


class ChunkVerdict(WireEnum):
    """The dispatcher's answer to a chunk; each lets the car forget it."""

    STORED = "stored"
    ALREADY_HAVE = "already_have"
    NOT_WANTED = "not_wanted"
    UNKNOWN = "unknown"


class CancelReason(WireEnum):
    """Why the dispatcher takes an attempt back."""

    JOB_CANCELLED = "job_cancelled"
    STALE_FENCE = "stale_fence"
    LEASE_LOST = "lease_lost"
    DEADLINE = "deadline"
    QUARANTINED = "quarantined"
    NOT_AWAITED = "not_awaited"
    """Of an interactive unit: its requesters have left, or have their answers."""
    UNKNOWN = "unknown"


class RequestRefusal(WireEnum):
    """Why a request that came over the bus is not answered with what it asked for."""

    MALFORMED = "malformed"
    OVERSIZE = "oversize"
    UNKNOWN_JOB = "unknown_job"
    """No such job of this tenant: deleted, another's, or never there."""
    RATE_EXCEEDED = "rate_exceeded"
    BUSY = "busy"
    STORE_UNAVAILABLE = "store_unavailable"
    UNKNOWN = "unknown"


class JobState(WireEnum):
    """A job's state as its requester sees it."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    UNKNOWN = "unknown"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more will happen."""
        return self in _TERMINAL_JOB_STATES


_TERMINAL_JOB_STATES = frozenset({JobState.DONE, JobState.CANCELLED, JobState.EXPIRED})


class EnergyMethod(WireEnum):
    """How a car knew the power of its computer (docs/explanation/wear.md)."""

    STATED_POWER = "stated_power"
    CALIBRATED_MODEL = "calibrated_model"
    VEHICLE_SIGNAL = "vehicle_signal"
    RAPL = "rapl"
    POWER_SUPPLY = "power_supply"
    INA = "ina"
    UNKNOWN = "unknown"


class WearMethod(WireEnum):
    """How a car knew what work wears its pack."""

    CELL_TABLE = "cell_table"
    """The published ageing of its kind of cell."""
    WORST_CELL_TABLE = "worst_cell_table"
    """Its cells are not known: the worst of all tables, so at most this."""
    UNKNOWN = "unknown"
