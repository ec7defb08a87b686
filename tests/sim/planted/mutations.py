"""Mistakes that somebody could make in the protocol, each as one replaced piece of text.

`old` occurs exactly once in its file: a refactoring that moves a guard must move its mutation
too. `caught_by` names the invariants that may notice it; see `edge_runtime/sim/invariants.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """`file` is below `edge_runtime/`.

    `needs` are the nemeses without which nobody could notice: seeds without them are passed over.
    """

    name: str
    mistake: str
    caught_by: str
    file: str
    old: str
    new: str
    needs: tuple[str, ...] = ()


_SHARES = (
    Mutation(
        "turns-are-kept",
        "Whoever was served stays at the head of the ring.",
        "S15",
        "dispatcher/core/jobs.py",
        "            self._ring.move_to_end(tenant)\n",
        "            self._ring.move_to_end(tenant, last=False)\n",
        needs=("neighbours",),
    ),
    Mutation(
        "usage-of-ended-jobs",
        "A job that ends goes on counting for its tenant's quota.",
        "S14",
        "dispatcher/storage/schema.py",
        "    jobs = jobs + (new.finished_ms IS NULL) - (old.finished_ms IS NULL),\n",
        "    jobs = jobs,\n",
    ),
    Mutation(
        "credited-again",
        "A car is credited whatever a chunk has, also where it only says it again.",
        "S17",
        "dispatcher/core/machine.py",
        "        self._book(job, unit.vehicle, chunk, done, now)\n",
        "        self._book(job, unit.vehicle, chunk, len(chunk.items), now)\n",
    ),
    Mutation(
        "late-work-for-nothing",
        "Who gives a result after its lease has ended is credited nothing.",
        "S17",
        "dispatcher/core/machine.py",
        "        self._book(job, vehicle, chunk, done, now)\n",
        "",
    ),
)

_DISPATCHER_CORE = (
    Mutation(
        "chunk-of-another-car",
        "A chunk for a live attempt is taken from any car, not only from the one that holds it.",
        "S5",
        "dispatcher/core/machine.py",
        "if unit.vehicle != vehicle or unit.job.spec.id != chunk.job:",
        "if unit.job.spec.id != chunk.job:",
        needs=("eavesdroppers",),
    ),
    Mutation(
        "late-chunk-of-another-car",
        "A chunk for an attempt that ended is taken from any car.",
        "S5",
        "dispatcher/core/machine.py",
        "if old.vehicle != vehicle or old.job != chunk.job:",
        "if old.job != chunk.job:",
        needs=("eavesdroppers",),
    ),
    Mutation(
        "items-never-issued",
        "A late chunk may close items that were never issued to its attempt.",
        "S5",
        "dispatcher/core/machine.py",
        "if result.index in issued and self._settling.take_late(job, result, vehicle, now):",
        "if self._settling.take_late(job, result, vehicle, now):",
        needs=("eavesdroppers",),
    ),
    Mutation(
        "any-item-of-the-job",
        "A chunk of a live attempt may close any open item of its job.",
        "S5, S11",
        "dispatcher/core/machine.py",
        "            if result.index in unit.open:\n",
        "            if result.index in job.items:\n",
        needs=("eavesdroppers",),
    ),
    Mutation(
        "refused-not-requeued",
        "The items of a refused offer stay with nobody.",
        "L1",
        "dispatcher/core/attempts.py",
        "                    self.end(unit, AttemptEnd.REFUSED, now)\n"
        "                    self.requeue(unit)\n",
        "                    self.end(unit, AttemptEnd.REFUSED, now)\n",
    ),
    Mutation(
        "released-not-requeued",
        "What a car gives back of a unit stays with nobody.",
        "L1",
        "dispatcher/core/machine.py",
        "            self._attempts.suspect(unit)\n        self._attempts.requeue(unit)\n",
        "            self._attempts.suspect(unit)\n",
    ),
    Mutation(
        "expired-not-requeued",
        "When a lease runs out only the item in hand is tried again, not the rest of its unit.",
        "L1",
        "dispatcher/core/attempts.py",
        "            self.suspect(unit)\n        self.requeue(unit)\n",
        "            self.suspect(unit)\n",
    ),
    Mutation(
        "lease-without-end",
        "A taken attempt's lease never runs out.",
        "L1",
        "dispatcher/core/attempts.py",
        "unit.lease_until_boot_ms = now.boot_ms + unit.lease_ms\n",
        "unit.lease_until_boot_ms = now.boot_ms + limits.JOB_RETENTION_MAX_S * 1000\n",
        needs=("stale_journals",),
    ),
    Mutation(
        "offers-sent-once",
        "An offer that is not answered is neither sent again nor given up.",
        "L1",
        "dispatcher/core/attempts.py",
        '                    self._state.counters["offers_resent"] += 1\n'
        "                    self._offer(unit, now)\n",
        '                    self._state.counters["offers_resent"] += 1\n',
    ),
    Mutation(
        "poison-tried-for-ever",
        "An item that kills every engine is never given up.",
        "L1, L2",
        "dispatcher/core/settling.py",
        "            distinct >= limits.POISON_DISTINCT_CARS\n"
        "            or len(struck) >= 2 * limits.POISON_DISTINCT_CARS\n",
        "            distinct >= limits.FLEET_MAX_CARS\n",
        needs=("engines",),
    ),
    Mutation(
        "poison-fails-its-unit",
        "The error of one undecodable item ends every item of its unit.",
        "S2",
        "dispatcher/core/settling.py",
        "                else:\n"
        "                    self.settle(job, index, vehicle, now, error=error)\n"
        "        return True\n",
        "                else:\n"
        "                    for other in (index, *(unit.open if unit else ())):\n"
        "                        if unit and other in unit.open:\n"
        "                            self.leave(unit, other)\n"
        "                        self.settle(job, other, vehicle, now, error=error)\n"
        "        return True\n",
        needs=("engines",),
    ),
    Mutation(
        "duplicate-chunk-is-paid",
        "A chunk that comes twice counts its computing time twice.",
        "S5",
        "dispatcher/core/machine.py",
        "if chunk.seq not in unit.seqs and len(unit.seqs) < limits.CHUNKS_PER_UNIT_MAX:",
        "if len(unit.seqs) < limits.CHUNKS_PER_UNIT_MAX:",
    ),
    Mutation(
        "cursor-skipped",
        "Two cursors are used up for one result.",
        "L1, L3",
        "dispatcher/core/settling.py",
        "        job.cursor += 1\n        if error is None:\n",
        "        job.cursor += 2\n        if error is None:\n",
    ),
    Mutation(
        "cursor-given-out-again",
        "After a restart cursors go on from the count of good results: failures had some too.",
        "S3",
        "dispatcher/core/machine.py",
        "            cursor=stored.cursor,\n        )\n        job.written = job.counts\n",
        "            cursor=stored.done,\n        )\n        job.written = job.counts\n",
        needs=("engines", "dispatcher_kills"),
    ),
    Mutation(
        "chunk-number-skipped",
        "The chunks of an attempt are numbered with gaps.",
        "S7",
        "vehicle/core/attempts.py",
        "        seq, self.next_seq = self.next_seq, self.next_seq + 1\n",
        "        seq, self.next_seq = self.next_seq, self.next_seq + 2\n",
    ),
    Mutation(
        "done-too-early",
        "A job is done while its last item is open.",
        "S2",
        "dispatcher/core/settling.py",
        "        if job.open_count:\n            state.touch(job)\n",
        "        if job.open_count > 1:\n            state.touch(job)\n",
    ),
    Mutation(
        "loaded-over-attempts",
        "Items that the store loads are queued although a restored attempt holds them.",
        "S3, S11",
        "dispatcher/core/machine.py",
        "if item.index not in job.closed_ahead and item.index not in job.items\n",
        "if item.index not in job.closed_ahead\n",
        needs=("dispatcher_kills",),
    ),
    Mutation(
        "unwanted-chunk-unanswered",
        "A chunk of a job that is over gets no answer.",
        "S12",
        "dispatcher/core/machine.py",
        "        if job is None or not wanted:\n"
        "            self._answer(vehicle, chunk, ChunkVerdict.NOT_WANTED)\n"
        "            return\n",
        "        if job is None or not wanted:\n            return\n",
    ),
    Mutation(
        "cancel-forgets-its-job",
        "A cancel is answered, and the job goes on.",
        "S2",
        "dispatcher/core/machine.py",
        "            self._settling.end_job(job, JobState.CANCELLED, now)\n",
        "            job.status_due = False\n",
        needs=("operators",),
    ),
)

_DISPATCHER_SHELL = (
    Mutation(
        "publish-before-commit",
        "Offers and answers leave before what they say is on disk.",
        "S1, S6",
        "dispatcher/service.py",
        "        if to_store:\n"
        "            await self._commit(to_store)\n"
        "            self._tell_committed(to_store)\n"
        "        for publish in to_publish:\n"
        "            self._publish_command(publish)\n",
        "        for publish in to_publish:\n"
        "            self._publish_command(publish)\n"
        "        if to_store:\n"
        "            await self._commit(to_store)\n"
        "            self._tell_committed(to_store)\n",
    ),
    Mutation(
        "results-before-commit",
        "Results are told before they are on disk.",
        "S1, S4",
        "dispatcher/service.py",
        "            await self._commit(to_store)\n            self._tell_committed(to_store)\n",
        "            self._tell_committed(to_store)\n            await self._commit(to_store)\n",
    ),
    Mutation(
        "commit-error-swallowed",
        "A commit that failed counts as one that succeeded.",
        "S2, S4, L3",
        "dispatcher/service.py",
        "                delay_s = min(2 * delay_s, limits.COMMIT_RETRY_MAX_S)\n",
        '                self.store_state = "ok"\n                return\n',
    ),
    Mutation(
        "accepted-before-commit",
        "A requester is told that its job is accepted before it is on disk.",
        "S1, S8",
        "dispatcher/desk.py",
        "asyncio.ensure_future(self._service.commit(events)).add_done_callback(finished)",
        "committed.set_result(asyncio.ensure_future(self._service.commit(events)) and None)",
    ),
    Mutation(
        "key-ignored",
        "A repeated idempotency key is not looked up.",
        "S8, S3",
        "dispatcher/desk.py",
        "before = known.get(key) if key else None",
        "before = None",
    ),
    Mutation(
        "status-read-last",
        "A stream reads its page before the job's state: it may end before the last results.",
        "S4",
        "dispatcher/desk.py",
        "                status = await self.job(tenant, job)\n"
        "                page = await self._store.results(job, cursor, limits.FEED_PAGE_ITEMS)\n",
        "                page = await self._store.results(job, cursor, limits.FEED_PAGE_ITEMS)\n"
        "                status = await self.job(tenant, job)\n",
    ),
    Mutation(
        "page-skips-one",
        "A page of results begins one after what follows the cursor.",
        "S4, L3",
        "dispatcher/storage/sqlite.py",
        '" WHERE job_no=(SELECT no FROM job WHERE id=?) AND cursor>?"',
        '" WHERE job_no=(SELECT no FROM job WHERE id=?) AND cursor>?+1"',
    ),
    Mutation(
        "published-ahead-of-ack",
        "The published cursor counts what the broker did not acknowledge.",
        "S4",
        "dispatcher/publisher.py",
        "            if not is_done or batch.job in self._behind:\n",
        "            if batch.job in self._behind:\n",
    ),
    Mutation(
        "no-catching-up",
        "After a restart what was not yet published is forgotten.",
        "S4",
        "dispatcher/service.py",
        "            self.publisher.catch_up(await self.store.unpublished"
        "(limits.STATUSES_WAITING_MAX))\n",
        "",
        needs=("dispatcher_kills",),
    ),
    Mutation(
        "epoch-reused",
        "A dispatcher that starts again uses the epoch of the one before.",
        "S6",
        "dispatcher/storage/recovery.py",
        "epoch = max((row[0] if row else 0) + 1, now_utc_s)",
        "epoch = row[0] if row else now_utc_s",
        needs=("dispatcher_kills",),
    ),
    Mutation(
        "epoch-by-clock-alone",
        "The epoch is the time of day, whatever was used before.",
        "S6",
        "dispatcher/storage/recovery.py",
        "epoch = max((row[0] if row else 0) + 1, now_utc_s)",
        "epoch = now_utc_s",
        needs=("dispatcher_kills",),
    ),
    Mutation(
        "recovery-opens-closed-items",
        "Recovery takes up finished items of live attempts as if they were open.",
        "S3",
        "dispatcher/storage/rows.py",
        '" AND NOT EXISTS (SELECT 1 FROM result r WHERE r.item = i.key)"',
        '""',
        needs=("dispatcher_kills",),
    ),
    Mutation(
        "loads-closed-items",
        "Items with a result are read from the store as open ones.",
        "S3",
        "dispatcher/storage/sqlite.py",
        '" AND NOT EXISTS (SELECT 1 FROM result r WHERE r.item = i.key)"\n            " ORDER BY',
        '" ORDER BY',
        needs=("dispatcher_kills",),
    ),
    Mutation(
        "attempt-of-anybody",
        "Looking up an attempt in the store does not ask whose it was.",
        "S5",
        "dispatcher/storage/sqlite.py",
        "a.vehicle=? AND j.id=?",
        "a.vehicle<>?||'.' AND j.id=?",
        needs=("eavesdroppers", "dispatcher_kills"),
    ),
    Mutation(
        "store-not-locked",
        "A second dispatcher may open the store.",
        "S6",
        "dispatcher/storage/files.py",
        "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
        needs=("second_dispatcher",),
    ),
    Mutation(
        "feed-skips-one",
        "A page of the newest results begins one after what follows the position.",
        "S4",
        "dispatcher/storage/recent.py",
        "newer = islice(self._entries, position - self._through, None)",
        "newer = islice(self._entries, position - self._through + 1, None)",
        needs=("feed_readers",),
    ),
)

_CAR = (
    Mutation(
        "taken-before-journal",
        "Taken is said before the journal holds the attempt.",
        "S1",
        "vehicle/core/work.py",
        "        self.ledger.append(WriteAttempt(offer))\n"
        "        if self.models.want(offer.model):\n",
        "        self.ledger.append(WriteAttempt(offer))\n"
        "        self.verdicts.append(Taken(unit=offer.unit, fence=offer.fence))\n"
        "        if self.models.want(offer.model):\n",
    ),
    Mutation(
        "attempt-not-journalled",
        "A taken attempt is never written to the journal.",
        "S1",
        "vehicle/journal.py",
        "                execute(_PUT_ATTEMPT, (offer.unit, *offer.fence, _encode(offer)))\n",
        "                _encode(offer)\n",
    ),
    Mutation(
        "chunk-before-journal",
        "A chunk is sent before the journal holds it.",
        "S1",
        "vehicle/core/work.py",
        "        self.outbox.add(chunk, body, ended_as)\n",
        "        self.outbox.add(chunk, body, ended_as)\n"
        "        self.outbox.committed((chunk.unit, chunk.fence), chunk.seq)\n",
    ),
    Mutation(
        "chunks-dropped-at-start",
        "A car that starts again throws its unanswered chunks away.",
        "S1",
        "vehicle/journal.py",
        '            _put_meta(connection, "boot", boot)\n',
        '            _put_meta(connection, "boot", boot)\n'
        '            connection.execute("DELETE FROM chunk")\n',
        needs=("car_kills",),
    ),
    Mutation(
        "attempts-forgotten-at-start",
        "A car that starts again does not give back what it held.",
        "S12",
        "vehicle/core/machine.py",
        "        for saved in snapshot.attempts:\n            work.restore(saved, now)\n",
        "",
        needs=("car_kills",),
    ),
    Mutation(
        "chunks-sent-once",
        "A chunk that is not answered is not sent again.",
        "S12",
        "vehicle/core/outbox.py",
        "            self._schedule(chunk, now.boot_ns + chunk.wait_ms * NS_PER_MS)\n",
        "",
    ),
    Mutation(
        "answer-covers-what-came-before",
        "An answer to one chunk is read as an answer to every earlier one.",
        "S12",
        "vehicle/core/outbox.py",
        "            if first_seq <= seq <= through_seq and chunk.is_durable\n",
        "            if seq <= through_seq and chunk.is_durable\n",
    ),
    Mutation(
        "failed-writes-dropped",
        "What the journal failed to write is not written again.",
        "S12, L1",
        "vehicle/core/ledger.py",
        "                case _:\n                    self._failed.append(write)\n",
        "                case _:\n                    pass\n",
    ),
    Mutation(
        "engine-dies-unblamed",
        "An item that kills the engine is not reported: it is computed again on the same car.",
        "L1",
        "vehicle/core/work.py",
        "        if event.index is not None and event.index in victim.remaining:\n",
        "        if event.index is None and event.index in victim.remaining:\n",
        needs=("engines",),
    ),
    Mutation(
        "engine-not-frozen",
        "When the owner comes the engine runs on until it is killed.",
        "S9",
        "vehicle/core/ladder.py",
        "        work.out.append(FreezeEngine(self._reason.value))\n",
        "",
        needs=("owners",),
    ),
    Mutation(
        "thawed-never",
        "When the reason to stop has passed the engine stays frozen.",
        "L1",
        "vehicle/core/ladder.py",
        "            work.out.append(ThawEngine())\n",
        "            pass\n",
        needs=("owners",),
    ),
    Mutation(
        "consent-ignored",
        "The owner's consent is not looked at.",
        "S9",
        "vehicle/core/rules.py",
        "None, no_consent, good=consent.given)",
        "None, no_consent, good=True)",
        needs=("owners",),
    ),
    Mutation(
        "withdrawn-results-sent",
        "What is computed goes on to the dispatcher when the owner has withdrawn consent.",
        "S9",
        "vehicle/core/machine.py",
        "            work.forget_results()\n            self._reconsider(now)\n",
        "            self._reconsider(now)\n",
        needs=("owners",),
    ),
    Mutation(
        "withdrawn-birth-retained",
        "A car says Birth for the broker to keep when its owner has withdrawn consent.",
        "S9",
        "vehicle/core/herald.py",
        "        said = PublishBirth(birth, is_retained=not self.is_hidden)\n",
        "        said = PublishBirth(birth)\n",
        needs=("owners", "broker_deaths"),
    ),
    Mutation(
        "occupancy-ignored",
        "Somebody in the car does not stop it.",
        "S9",
        "vehicle/core/rules.py",
        "    if policy.empty_only and is_occupied is not None:\n",
        "    if policy.empty_only and is_occupied is False:\n",
        needs=("owners",),
    ),
    Mutation(
        "driving-ignored",
        "A car that drives goes on computing.",
        "S9",
        "vehicle/core/rules.py",
        "    if policy.parked_only and is_parked is not None:\n",
        "    if policy.parked_only and is_parked:\n",
        needs=("owners",),
    ),
    Mutation(
        "stale-sensor-believed",
        "A signal that fell silent counts with its last value.",
        "S9",
        "vehicle/core/readings.py",
        "        if not 0 <= now.boot_ns - reading.at_ns <= STALE_NS:\n",
        "        if not 0 <= now.boot_ns - reading.at_ns:\n",
        needs=("broken_sensors",),
    ),
    Mutation(
        "unplugged-ignored",
        "A car that was unplugged goes on computing on its battery.",
        "S9",
        "vehicle/core/rules.py",
        "    if policy.plugged_only and is_plugged is not None:\n",
        "    if policy.plugged_only and is_plugged:\n",
        needs=("owners",),
    ),
)

_TENANTS = (
    Mutation(
        "job-of-anybody",
        "Who knows a job's id may read, cancel and delete it.",
        "S10",
        "dispatcher/desk.py",
        "        if status is None or (tenant is not None and status.tenant != tenant):\n",
        "        if status is None:\n",
        needs=("neighbours",),
    ),
    Mutation(
        "list-of-anybody",
        "The list of a tenant's jobs has those of all tenants.",
        "S10",
        "dispatcher/desk.py",
        "return await self._store.jobs(tenant, state, limit, before)",
        "return await self._store.jobs(None, state, limit, before)",
        needs=("neighbours",),
    ),
    Mutation(
        "fetch-of-anybody",
        "Over MQTT who knows a job's id is sent its results.",
        "S10",
        "dispatcher/requests.py",
        "        if status is None or status.tenant != asked.tenant:\n",
        "        if status is None:\n",
        needs=("neighbours",),
    ),
    Mutation(
        "fetch-answered-anywhere",
        "Results are sent to whatever topic the request names, another tenant's too.",
        "S10",
        "dispatcher/requests.py",
        "        elif not self._topics.is_for_answers(tenant, respond_to):\n",
        "        elif not respond_to:\n",
        needs=("neighbours",),
    ),
    Mutation(
        "keys-of-all-tenants",
        "An idempotency key of one tenant is looked up among those of all.",
        "S8, S10",
        "dispatcher/storage/sqlite.py",
        '"SELECT id, body_hash FROM job WHERE tenant=? AND key=?"',
        "\"SELECT id, body_hash FROM job WHERE tenant<>?||'.' AND key=?\"",
        needs=("neighbours",),
    ),
    Mutation(
        "other-body-ignored",
        "A known key with another body is answered as if it were the same job.",
        "S8",
        "dispatcher/desk.py",
        "                if before.body_hash != spec.body_hash:\n",
        "                if not before.body_hash:\n",
        needs=("twins",),
    ),
    Mutation(
        "twins-not-waited-for",
        "A key that is being accepted is not known until it is on disk.",
        "S3, S8",
        "dispatcher/desk.py",
        "being_accepted = self._accepting.get((tenant, key)) if key else None",
        "being_accepted = None",
        needs=("twins",),
    ),
    Mutation(
        "deleted-without-cancel",
        "A job that runs is deleted without being cancelled first.",
        "S2",
        "dispatcher/desk.py",
        "            status = await self.cancel(tenant, job)\n            await self._store.delete",
        "            status = await self.job(tenant, job)\n            await self._store.delete",
        needs=("deleters",),
    ),
    Mutation(
        "deleted-but-for-attempts",
        "A deleted job's attempts stay in the store.",
        "S2",
        "dispatcher/storage/sqlite.py",
        'for table in ("result", "attempt", "strike"):',
        'for table in ("result", "strike"):',
        needs=("deleters",),
    ),
    Mutation(
        "requeue-races-deletion",
        "A job may be deleted between being read to run again and running again.",
        "S2, S11",
        "dispatcher/desk.py",
        "            async with self._service.ended_jobs:\n                event = await",
        "            async with asyncio.timeout(None):\n                event = await",
        needs=("deleters",),
    ),
    Mutation(
        "status-of-deleted-stays",
        "The retained status of a deleted job is not cleared.",
        "S2",
        "dispatcher/desk.py",
        "        self._service.publisher.clear_status(status.tenant, job)\n",
        "",
        needs=("deleters",),
    ),
    Mutation(
        "to-clear-forgotten",
        "After a restart nobody knows any more which statuses were to be cleared.",
        "S2",
        "dispatcher/service.py",
        "            for tenant, job in await self.store.to_clear(limits.STATUSES_WAITING_MAX):\n"
        "                self.publisher.clear_status(tenant, job)\n",
        "",
        needs=("deleters",),
    ),
    Mutation(
        "fetch-skips-one",
        "What is fetched over MQTT begins one after what follows the cursor.",
        "S4",
        "dispatcher/requests.py",
        "results = await self._page(job, cursor)",
        "results = await self._page(job, cursor + 1)",
        needs=("third_parties",),
    ),
    Mutation(
        "subscription-over-a-gap",
        "The SDK's subscription takes a live result though earlier ones are missing.",
        "S4",
        "client/subscription_state.py",
        "            elif is_whole or entry.cursor == track.through + 1:\n",
        "            elif is_whole or entry.cursor > track.through:\n",
        needs=("third_parties",),
    ),
    Mutation(
        "subscription-repeats",
        "The SDK's subscription gives the result at its cursor once more.",
        "S4",
        "client/subscription_state.py",
        "            if entry.cursor <= track.through:\n",
        "            if entry.cursor < track.through:\n",
        needs=("third_parties",),
    ),
)

_STEWARDS = (
    Mutation(
        "older-fence-adopted",
        "A car lets an older offer of a unit take its run over.",
        "S6",
        "vehicle/core/work.py",
        "        elif seen and offer.fence < max(seen):\n",
        "        elif seen and offer.fence < max(seen) and held is None:\n",
        needs=("echoes",),
    ),
    Mutation(
        "outbox-overflows-in-silence",
        "What does not fit the bus's outbox is dropped, and nobody is told.",
        "S12",
        "bus/outbox.py",
        "            self._drop(DropReason.OUTBOUND_FULL)\n            raise BusOverflow(\n",
        "            if waiter is None:\n                return\n            raise BusOverflow(\n",
        needs=("small_outboxes",),
    ),
    Mutation(
        "drain-ignored",
        "A car that is told to drain goes on taking units.",
        "S9",
        "vehicle/core/machine.py",
        "                self._is_draining = order.active\n",
        "                self._is_draining = False\n",
        needs=("drains",),
    ),
    Mutation(
        "desired-ignored",
        "A car fetches no model before it has work for it.",
        "L1",
        "vehicle/core/machine.py",
        "                self._desired = event.models\n",
        "                self._desired = ()\n",
        needs=("prefetches",),
    ),
    Mutation(
        "leaves-with-work",
        "A car that is told to end does not give its units back.",
        "S12",
        "vehicle/core/machine.py",
        "            return Hold(self._leave_hold, stop=True)\n",
        "            return Hold(self._leave_hold, stop=False)\n",
        needs=("clean_stops",),
    ),
    Mutation(
        "struck-not-alone",
        "An item that ended a car's process is tried again among others.",
        "S11",
        "dispatcher/core/settling.py",
        "        job.alone.append(index)\n        self._state.turns",
        "        job.pending.append(index)\n        self._state.turns",
        needs=("killer_items",),
    ),
    Mutation(
        "reboot-blames-another",
        "After a reboot the last item of the unit takes the blame, not the one in hand.",
        "S2",
        "vehicle/core/work.py",
        "            blamed = failed_item(saved.started, ItemError.CAR_REBOOTED, message)\n",
        "            blamed = failed_item(max(remaining), ItemError.CAR_REBOOTED, message)\n",
        needs=("killer_items",),
    ),
)

_VISITORS = (
    Mutation(
        "answers-exchanged",
        "Requests that travel together get each other's answers.",
        "S13",
        "dispatcher/core/interactive.py",
        "            open=dict(enumerate(batch)),\n",
        "            open=dict(enumerate(reversed(batch))),\n",
        needs=("visitors",),
    ),
    Mutation(
        "computed-for-nobody",
        "A requester who leaves is forgotten, and the car that computes for it is not told.",
        "S13",
        "dispatcher/core/interactive.py",
        "                self._cancel(unit, now)\n        request.units",
        "                self._drop(unit)\n        request.units",
        needs=("visitors",),
    ),
    Mutation(
        "interactive-journalled",
        "A car keeps the answers of interactive units as it keeps those of jobs.",
        "S13",
        "vehicle/core/work.py",
        "        if attempt.is_interactive:\n            self._once.append(encode(chunk))\n",
        "        if attempt.is_interactive and not chunk.items:\n"
        "            self._once.append(encode(chunk))\n",
        needs=("visitors",),
    ),
)

_DRAINING = (
    Mutation(
        "offers-while-draining",
        "A dispatcher that is told to end goes on giving work to cars.",
        "S16",
        "dispatcher/core/machine.py",
        "        if not self.is_draining:\n            self._schedule(now)\n",
        "        self._schedule(now)\n",
        needs=("clean_stops",),
    ),
    Mutation(
        "drains-for-ever",
        "A dispatcher that is told to end waits for cars without an end.",
        "S16, L1",
        "dispatcher/service.py",
        "                async with asyncio.timeout_at(began_s + most_s):\n",
        "                async with asyncio.timeout_at(None):\n",
        needs=("clean_stops",),
    ),
)

MUTATIONS = (
    *_DISPATCHER_CORE,
    *_SHARES,
    *_DISPATCHER_SHELL,
    *_CAR,
    *_TENANTS,
    *_STEWARDS,
    *_VISITORS,
    *_DRAINING,
)
