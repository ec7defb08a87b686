"""What signing every message to cars costs: alone, and in a burst of jobs beside an unsigned one.

Two whole systems run at once, a dispatcher that signs with a car that verifies, and a pair that
does neither; bursts alternate between them. Ratios are of jobs a second, and of processor time a
job, which depends less on what else the machine does.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from _rig import TENANT, Load, Process, Rig, cpu_s, figure, median, say
from burst import JOBS, UNITS_MAX, burst, warm_up

from edge_runtime.client import EdgeClient
from edge_runtime.contract.messages import Signed
from edge_runtime.pki.signing import MessageSigner, TrustedKeys

BODY_BYTES: Final = 600
"""About an offer of a small unit, or the answers to a few chunks."""
CALLS: Final = 500
ROUNDS: Final = 9
WANTED: Final = 0.9


def best_us(call: Callable[[], object]) -> float:
    """Processor microseconds of one call: the best of twenty rounds."""
    rounds = []
    for _ in range(20):
        started_s = time.process_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.process_time() - started_s) / CALLS)
    return 1e6 * min(rounds)


def measure_calls(signer: MessageSigner, trusted: TrustedKeys) -> None:
    """Print what one signature and one verification cost."""
    body = bytes(range(256)) * 3
    body = body[:BODY_BYTES]
    envelope = Signed(key_id=signer.key_id, signature=signer.sign(body), body=body)
    assert trusted.refusal(envelope) is None
    for name, call in (
        ("sign_us", lambda: signer.sign(body)),
        ("verify_us", lambda: trusted.refusal(envelope)),
    ):
        figure(name, best_us(call), "us", "<= 100", shared="1 core", bytes=BODY_BYTES)


@dataclass
class System:
    """One dispatcher with its car, and what its bursts took."""

    rig: Rig
    services: tuple[Process, Process]
    jobs_per_s: list[float] = field(default_factory=list)
    dispatcher_ms: list[float] = field(default_factory=list)
    car_ms: list[float] = field(default_factory=list)

    async def burst(self, client: EdgeClient) -> None:
        """One more; processor milliseconds of a job are those of the service alone."""
        before_s = [cpu_s(service.pid) for service in self.services]
        self.jobs_per_s.append(await burst(client))
        used = (cpu_s(one.pid) - was_s for one, was_s in zip(self.services, before_s, strict=True))
        for cost_s, into in zip(used, (self.dispatcher_ms, self.car_ms), strict=True):
            into.append(1000 * cost_s / JOBS)


async def alternate(plain: System, signed: System) -> None:
    """Bursts, in turns."""
    async with (
        EdgeClient(plain.rig.url, TENANT) as one,
        EdgeClient(signed.rig.url, TENANT) as other,
    ):
        for client in (one, other):
            await warm_up(client)
        for number in range(ROUNDS):
            # Who goes first changes: the machine's speed drifts.
            order = ((plain, one), (signed, other))
            for system, client in order if number % 2 else order[::-1]:
                await system.burst(client)
            say(f"signing: {plain.jobs_per_s[-1]:.0f} jobs/s, signed {signed.jobs_per_s[-1]:.0f}")


def start(rig: Rig, key: Path | None = None, trusted: Path | None = None) -> System:
    """A system; with keys, one that signs and verifies."""
    rig.start_broker()
    dispatcher = rig.start_dispatcher(options=() if key is None else (f"--signing-key={key}",))
    options = () if trusted is None else (f"--trusted-keys={trusted}",)
    car = rig.start_car(units_max=UNITS_MAX, options=options)
    rig.await_ready_car()
    return System(rig, (dispatcher, car))


def main() -> None:
    """Measure and print."""
    signer = MessageSigner.generate()
    with Rig() as plain_rig, Rig() as signed_rig:
        key, trusted = signed_rig.folder / "signing.key", signed_rig.folder / "trusted.pem"
        signer.save(key)
        trusted.write_bytes(signer.public_pem())
        measure_calls(signer, TrustedKeys(trusted))
        plain, signed = start(plain_rig), start(signed_rig, key, trusted)
        with Load() as load:
            asyncio.run(alternate(plain, signed))
    shared = "2 cores: two brokers, dispatchers, cars with engines, the requester here"
    for name, less, more, unit in (
        ("signed_burst_ratio", signed.jobs_per_s, plain.jobs_per_s, "jobs_per_s"),
        ("signed_dispatcher_cpu_ratio", plain.dispatcher_ms, signed.dispatcher_ms, "ms_per_job"),
        ("verifying_car_cpu_ratio", plain.car_ms, signed.car_ms, "ms_per_job"),
    ):
        is_rate = unit == "jobs_per_s"
        figure(
            name,
            median(less) / median(more),
            "",
            f">= {WANTED}",
            shared=shared,
            digits=3,
            rounds=ROUNDS,
            **{
                f"unsigned_{unit}": round(median(more if is_rate else less), 3),
                f"signed_{unit}": round(median(less if is_rate else more), 3),
            },
            **load.facts(),
        )


if __name__ == "__main__":
    main()
