"""Why a car gets no work, in words for its operator.

Deliberately absent: what the car alone knows (its owner's limits and its readings of them). The
owner asks the car: `edge-runtime owner why`.
"""

from typing import Final

from edge_runtime.contract.reasons import HoldReason

HOLD_WORDS: Final[dict[HoldReason, str]] = {
    HoldReason.CONSENT_MISSING: "its owner has not agreed to work for others",
    HoldReason.CONSENT_WITHDRAWN: "its owner has withdrawn consent, and may give it again",
    HoldReason.OWNER_PAUSED: "its owner has paused it, until the owner resumes it",
    HoldReason.OUTSIDE_SCHEDULE: "it is outside the hours that its owner allows",
    HoldReason.DEPARTURE_SOON: "its owner leaves soon and the charge is kept for the trip",
    HoldReason.NOT_PARKED: "it is not parked",
    HoldReason.OCCUPIED: "somebody is in the car",
    HoldReason.NOT_PLUGGED: "it is not plugged in, and its owner asks for that",
    HoldReason.CHARGE_LOW: "its charge is under what its owner keeps in reserve",
    HoldReason.BATTERY_HOT: "its battery is too hot; it begins again when it has cooled down",
    HoldReason.BATTERY_COLD: "its battery is too cold",
    HoldReason.COMPUTE_HOT: "its computer is too hot; it begins again when it has cooled down",
    HoldReason.ENERGY_BUDGET_SPENT: "it has used the energy that its owner gives for the day",
    HoldReason.TARIFF_HIGH: "electricity costs more now than its owner accepts",
    HoldReason.NETWORK_METERED: "its connection is metered",
    HoldReason.DATA_BUDGET_SPENT: "it has moved the data that its owner gives for the day",
    HoldReason.WEAR_BUDGET_SPENT: "it has spent the battery wear that its owner gives",
    HoldReason.LOW_VOLTAGE_LOW: "its 12 V battery is low",
    HoldReason.POWER_SAVING: "the car saves power",
    HoldReason.SENSOR_STALE: "a reading that its policy needs has become too old",
    HoldReason.SENSOR_INVALID: "a reading that its policy needs is impossible",
    HoldReason.CLOCK_UNTRUSTED: "its clock cannot be right",
    HoldReason.POLICY_INVALID: "its owner's policy file cannot be read",
    HoldReason.STORAGE_FULL: "its disk is full",
    HoldReason.STORAGE_ERROR: "its disk fails",
    HoldReason.ENGINE_UNHEALTHY: "its inference process died too often; it tries again by itself",
    HoldReason.DRAINING: "its runtime is stopping or being upgraded",
    HoldReason.DWELL: "it waits a while after the last change before it begins, so as not to flap",
    HoldReason.AMBIENT_OUT_OF_RANGE: "the air outside is too hot or too cold",
    HoldReason.CABIN_OUT_OF_RANGE: "its cabin is too hot or too cold",
    HoldReason.JURISDICTION_NOT_ALLOWED: "it stands where its owner does not allow work",
    HoldReason.CYCLES_SPENT: "it has begun work as often as its owner allows for the day",
    HoldReason.UNKNOWN: "it gives a reason that this dispatcher does not know: it runs newer code",
}
