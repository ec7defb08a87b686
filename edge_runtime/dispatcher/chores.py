"""What the dispatcher does beside its ticks: retention, retained topics, sums, requests."""

import asyncio

import structlog

from edge_runtime.bus import Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.messages import FleetAggregate
from edge_runtime.dispatcher.keeper import RepositoryKeeper
from edge_runtime.dispatcher.service import DispatcherService
from edge_runtime.dispatcher.storage import StoreError

_log = structlog.get_logger(__name__)
_CLEARED_THROUGH = "status_cleared_through_ms"
_MSGPACK = "application/x-msgpack"


class Chores:
    """Periodic and requested work over one service."""

    def __init__(self, service: DispatcherService) -> None:
        self._service = service

    def start(self) -> None:
        """Run for as long as the service lives."""
        for work in (
            self._sweep_forever,
            self._announce_forever,
            self._aggregate_forever,
            self._write_totals_forever,
            self._service.requests.serve,
        ):
            self._service.spawn(work)
        settings = self._service.settings
        if settings.repository is not None and settings.repository_keys:
            keeper = RepositoryKeeper(settings.repository, settings.repository_keys)
            self._service.spawn(keeper.keep)

    # --- retention ---

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(limits.SWEEP_INTERVAL_S)
            try:
                await self.sweep()
            except StoreError as error:
                _log.warning("sweep_failed", error=str(error))

    async def sweep(self) -> None:
        """Delete jobs whose retention is over; clear status topics a day after a job's end."""
        store, publisher = self._service.store, self._service.publisher
        now_ms = self._service.clock().utc_ms
        for tenant, job in await store.expired(now_ms, limits.SWEEP_JOBS):
            async with self._service.ended_jobs:
                is_gone = await store.delete(job)
            if is_gone:  # else it was run again meanwhile
                publisher.clear_status(tenant, job)
        after = await store.get_meta(_CLEARED_THROUGH)
        until = now_ms - limits.JOB_STATUS_RETAINED_S * 1000
        ended = await store.ended_between(after, until, limits.SWEEP_JOBS)
        for status in ended:
            publisher.clear_status(status.tenant, status.job)
        through = ended[-1].finished_ms if len(ended) >= limits.SWEEP_JOBS else until
        if through is not None and through != after:  # back where a clock was ahead
            await store.set_meta(_CLEARED_THROUGH, through)

    # --- totals ---

    async def _write_totals_forever(self) -> None:
        while True:
            await asyncio.sleep(limits.TOTALS_WRITE_S)
            await self._service.write_totals()

    # --- aggregates ---

    async def _announce_forever(self) -> None:
        """A car that only holds models ready says nothing when it does not know where they are."""
        while True:
            await asyncio.sleep(limits.HOST_ANNOUNCE_EVERY_S)
            self._service.announce_again()

    async def _aggregate_forever(self) -> None:
        while True:
            await asyncio.sleep(limits.FLEET_AGGREGATE_INTERVAL_S)
            if self._service.bus.is_connected:
                self.publish_aggregates()

    def publish_aggregates(self) -> None:
        """Capacity by region, retained at QoS 0."""
        service = self._service
        now_ms = service.clock().utc_ms
        for region, counts in service.core.fleet.counts_by_region().items():
            aggregate = FleetAggregate(region=region, at_ms=now_ms, **counts)
            service.publish(
                Message(
                    topic=service.topics.fleet(region),
                    payload=codec.encode(aggregate),
                    qos=0,
                    retain=True,
                    content_type=_MSGPACK,
                )
            )
