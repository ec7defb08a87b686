"""Every bound of the system, in one place, unit last.

A queue, size, count or time that is not listed here is a defect: rule 4 of the
design is that nothing is unbounded. Settings may lower most of these; nothing
raises them at run time.
"""

from typing import Final

# --- on the wire -----------------------------------------------------------------
MESSAGE_MAX_BYTES: Final = 256 * 1024
"""Largest MQTT payload that is sent or decoded; the Mosquitto configuration says the same."""
UNIT_MAX_BYTES: Final = 120 * 1024
"""A unit and a chunk close when their encoded items reach this."""
ITEM_MAX_BYTES: Final = 112 * 1024
"""Largest inline input of one item; a larger one is uploaded first and travels as a reference."""
OUTPUT_MAX_BYTES: Final = 112 * 1024
"""Largest inline output of one item; a larger one, up to `OBJECT_MAX_BYTES`, is handed over as an
object where there is one to take it, and otherwise ends as `result_too_large`."""
OUTPUT_NESTING_MAX: Final = 64
"""Lists and maps inside each other in one output; readers' own limits begin near 500."""
OUTPUTS_LOOK_MAX_VALUES: Final = 24_576
"""Values in one message's outputs that are looked at to measure how deep they nest (2 ms); text
of a thousand lines with their corners holds 19,000."""
PARAMETERS_MAX_BYTES: Final = 8 * 1024
UNITS_PER_OFFER_MAX: Final = 64
VERDICTS_PER_MESSAGE_MAX: Final = 256
CHUNKS_PER_MESSAGE_MAX: Final = 64
ORDERS_PER_MESSAGE_MAX: Final = 256
ITEMS_PER_CHUNK_MAX: Final = 256
COUNT_MAX: Final = 2**62
"""Largest id, number, size or time: fits a signed 64-bit column with room to add."""
SMALL_COUNT_MAX: Final = 65_535
AMOUNT_MAX: Final = 1e12
"""Largest energy or duration a car may report; NaN and infinity are refused with it."""
CHUNK_WEAR_MAX_PERCENT: Final = 0.1
"""Largest wear that a car may report of one chunk, percent of its pack's capacity; a whole cycle of
the worst cells known takes a quarter of it."""
NEWER_CONTENT_LOOK_MAX_BYTES: Final = 16 * 1024
"""Messages up to this size are searched for a newer peer's fields and reasons to count them."""
TEXT_MAX_CHARS: Final = 512
"""Free text inside messages (error messages, names)."""
ID_MAX_CHARS: Final = 64
TENSOR_MAX_RANK: Final = 16
TENSOR_MAX_ELEMENTS: Final = 1 << 27

# --- accounts and tenants ------------------------------------------------------------
KEYS_MAX: Final = 100_000
"""API keys kept, revoked ones included: a refused key is told from one that never was."""
KEY_MAX_CHARS: Final = 256
TENANT_WEIGHT_MAX: Final = 100
TENANTS_REMEMBERED_MAX: Final = 10_000
"""Tenants whose rate of requests, or debt of car time, is remembered."""
DEADLINE_BOOST_LEVELS: Final = 3
"""Levels of priority by which a job is lifted when its deadline is near."""
DEADLINE_BOOST_MS: Final = 60_000
"""A deadline is near with less than this left, or less than a tenth of the job's whole time."""
ROOMS_PER_TICK_MAX: Final = 4
"""Units that wait on cars and are taken back in one tick for tenants with nothing out."""
REQUESTS_BURST_DEFAULT_S: Final = 2.0
"""Requests that may come at once where a quota names a rate alone: those of so many seconds."""

# --- OpenAI's files and batches -----------------------------------------------------------
FILE_MAX_BYTES: Final = 200 * 1024 * 1024
"""Largest uploaded file, as OpenAI has it."""
FILE_NAME_MAX_CHARS: Final = 255
OPENAI_PAGE_MAX: Final = 100
FILE_EXPIRY_MIN_S: Final = 3_600
FILE_EXPIRY_MAX_S: Final = 30 * 24 * 3600
FILES_SWEPT_MAX: Final = 10_000
FILE_FORM_MAX_BYTES: Final = 64 * 1024
"""Everything of an upload that is not the file."""
UPLOAD_SILENCE_S: Final = 30.0
"""An upload of which nothing comes for so long is given up."""
UPLOADS_MAX: Final = 64
UPLOAD_WRITE_BYTES: Final = 1024 * 1024
BATCH_LINES_MAX: Final = 50_000
BATCH_LINE_MAX_BYTES: Final = 1024 * 1024
BATCH_CUSTOM_ID_MAX_CHARS: Final = 512
BATCHES_OPEN_MAX: Final = 256
"""Batches of one dispatcher that have not ended."""
BATCH_PART_LINES: Final = 2_048
BATCH_PART_BYTES: Final = 4 * 1024 * 1024
"""What is read of a batch at once, and becomes one job for each model in it."""
BATCH_PART_ITEMS_MAX: Final = 8_192
BATCH_LOOK_S: Final = 0.5
BATCH_RETRY_S: Final = 2.0
BATCH_WINDOW_MAX_S: Final = 30 * 24 * 3600
BATCH_ERRORS_KEPT_MAX: Final = 100
EMBEDDING_INPUTS_MAX: Final = 2_048

# --- objects: what does not travel inline ---------------------------------------------------
OBJECT_MAX_BYTES: Final = 16 * 1024 * 1024
"""Largest object: with another of a run that is being stopped, and all that travels inline, it
fits what a car's engine takes at once."""
UNIT_OBJECTS_MAX_BYTES: Final = OBJECT_MAX_BYTES
"""What the references of one unit lead to, together; and what a car has fetched of all units."""
OBJECTS_MAX: Final = 100_000
"""Objects of one dispatcher, half-uploaded ones included."""
OBJECT_UNUSED_S: Final = 24 * 3600
"""An object that no job uses is gone after so long."""
OBJECT_LOOK_S: Final = 600
"""How often it is looked whether the jobs that use an object are still there."""
OBJECT_JOBS_MAX: Final = 64
"""Jobs that one object remembers; with more it stays until the last of them surely is over."""
OBJECT_UPLOADS_MAX: Final = 64
"""Uploads that write at the same time; one more is refused with 503."""
OBJECT_METADATA_MAX_CHARS: Final = 4_096
OBJECT_STORE_ANSWER_S: Final = 30.0
"""How long a store of objects, retries included, may take to answer."""
OBJECT_FETCH_TRIES: Final = 3
"""How often a car tries to fetch an input before it gives the unit back."""
OBJECT_FETCH_RETRY_S: Final = 1.0
"""Before the second try, and twice as long before each further one."""
OUTPUT_UPLOAD_TRIES: Final = 8
"""How often a car tries to hand over a large output, with waits as between sends of a chunk (some
five minutes); then its item has failed here."""
UPLOAD_PIECE_BYTES: Final = 64 * 1024
"""What a car sends of an output at once, and then counts."""

# --- the bus ---------------------------------------------------------------------
BUS_PACKET_MAX_BYTES: Final = MESSAGE_MAX_BYTES + 8 * 1024
"""Largest MQTT packet: a payload plus its topic and properties."""
BUS_INBOUND_MAX_MESSAGES: Final = 20_000
BUS_INBOUND_MAX_BYTES: Final = 128 * 1024 * 1024
BUS_OUTBOUND_MAX_MESSAGES: Final = 20_000
BUS_OUTBOUND_MAX_BYTES: Final = 64 * 1024 * 1024
BUS_INFLIGHT_MAX_MESSAGES: Final = 1_000
"""QoS 1 messages sent and not yet acknowledged; a broker's Receive Maximum lowers it."""
BUS_RECONNECT_FIRST_S: Final = 1.0
"""Upper end of the first reconnect delay; it doubles up to the next bound (full jitter)."""
BUS_CHANGES_WAITING_MAX: Final = 64
"""Connects and disconnects that wait for a reader; the oldest goes."""
BUS_SESSION_QUEUE_MAX_MESSAGES: Final = 1_000
"""What the memory broker keeps for an absent client, as Mosquitto does by default."""
BUS_PROPERTY_SETS_KEPT_MAX: Final = 1_024
"""Encoded MQTT 5 property sets kept for the next message with the same ones."""
BUS_RECONNECT_MAX_S: Final = 30.0
BUS_STABLE_S: Final = 5.0
"""A connection that lived this long resets the reconnect delay."""
BUS_CONNECT_TIMEOUT_S: Final = 10.0
BUS_CANARY_TIMEOUT_S: Final = 5.0
BUS_ACK_TIMEOUT_S: Final = 30.0
BUS_CLOSE_TIMEOUT_S: Final = 2.0

# --- jobs ------------------------------------------------------------------------
JOB_MAX_ITEMS: Final = 1_000_000
JOB_MAX_BODY_BYTES: Final = 256 * 1024 * 1024
JOBS_PER_REQUEST_MAX: Final = 256
JOB_DEADLINE_MAX_S: Final = 30 * 24 * 3600
JOB_DEADLINE_DEFAULT_S: Final = 24 * 3600
JOB_RETENTION_MAX_S: Final = 365 * 24 * 3600
JOB_RETENTION_DEFAULT_S: Final = 7 * 24 * 3600
JOB_STATUS_RETAINED_S: Final = 24 * 3600
JOB_STATUS_AGAIN_S: Final = 600
"""Of jobs that ended so lately the status is published again after each reconnect: a broker that
crashed may have lost what it acknowledged since its last snapshot."""
OPEN_JOBS_MAX: Final = 1_000_000
"""Open jobs in the store; a submission above it is refused with 429."""
WINDOW_JOBS_MAX: Final = 20_000
"""Open jobs whose items are held in memory; the rest wait in the store."""
WINDOW_ITEMS_MAX: Final = 50_000
WINDOW_BYTES_MAX: Final = 64 * 1024 * 1024
ENDED_ATTEMPTS_KEPT_MAX: Final = 50_000

# --- interactive requests --------------------------------------------------------
TOKENS_PER_PIECE_MAX: Final = 256
"""Tokens that one chunk adds to one item; the engine tells 8, or those of 50 ms, at a time."""
TOKENS_TEXT_MAX_CHARS: Final = 16 * 1024
INTERACTIVE_CAR_UNITS_MAX: Final = 8
"""Interactive units that a car holds, beside its durable ones."""
INTERACTIVE_FENCES_REMEMBERED_MAX: Final = 1_024
INTERACTIVE_OUTPUTS_MAX_BYTES: Final = 64 * 1024 * 1024
"""Outputs of interactive requests over `OUTPUT_MAX_BYTES` that a car, or the dispatcher, holds in
memory at a time: on their way to requesters who wait."""
INTERACTIVE_UPLOAD_TRIES: Final = 3
"""How often a car tries to hand in an output of an interactive request."""
INTERACTIVE_IN_FLIGHT: Final = 2
"""Units that the dispatcher keeps on a car: one is computed while the next one travels."""
INTERACTIVE_BATCH_ROWS_MAX: Final = 64
"""Rows, counted along the batch axis, of the requests that travel as one unit."""
INTERACTIVE_BATCH_MS: Final = 50
"""A batch closes at so much expected time: the next one may find a car that is free."""
INTERACTIVE_BATCH_WAIT_MS: Final = 2
"""Longest that a request waits for company, while every car that would do computes another."""
INTERACTIVE_TIMEOUT_DEFAULT_MS: Final = 55_000
"""The deadline of a request that names none; the usual clients give up after 60 s."""
INTERACTIVE_NO_CAR_MS: Final = 2_000
"""A request waits so long for any car that may serve it; then it is refused, with the reason."""
INTERACTIVE_SILENCE_MS: Final = 1_000
"""A car that says nothing of a unit for so long beyond its expected time: another is asked too."""
INTERACTIVE_COLD_MS: Final = 10_000
"""And for so long where the car must first load, or fetch, the model."""
INTERACTIVE_ATTEMPTS_MAX: Final = 8
"""Cars that one request is given to, one after the other."""
INTERACTIVE_AVOID_MS: Final = 1_000
"""A car that gave a unit back or was silent is not asked again for so long."""
INTERACTIVE_REQUESTS_MAX: Final = 4_096
"""Requests that wait or are computed, of all tenants; one more is refused with 503."""
INTERACTIVE_TENANT_REQUESTS_MAX: Final = 1_024
INTERACTIVE_BYTES_MAX: Final = 256 * 1024 * 1024
"""And their inputs."""
INTERACTIVE_LOOKS_MAX: Final = 64
"""Cars that are looked at to place one unit."""
INTERACTIVE_POOL_MS: Final = 250
"""A list of cars that may serve a model is made anew after so long."""
OIP_BODY_MAX_BYTES: Final = 1024 * 1024
"""Largest body of an inference request, packed or not; its tensors travel inline, in JSON they may
be several times as long."""
OIP_JSON_OUTPUT_MAX_BYTES: Final = 4 * 1024 * 1024
"""Largest output tensor that is written as JSON; a larger one is asked for as binary."""
OIP_LARGE_BODY_MAX_BYTES: Final = OBJECT_MAX_BYTES + OIP_BODY_MAX_BYTES
"""Largest body with binary tensors, packed or not: one object, and the JSON before it."""
OIP_LARGE_BODIES_MAX_BYTES: Final = 128 * 1024 * 1024
"""Bodies over `OIP_BODY_MAX_BYTES`, from their first byte to their answer; one more is a 503."""
OIP_TENANT_LARGE_BODIES_MAX_BYTES: Final = OIP_LARGE_BODIES_MAX_BYTES // 2
"""And those of one tenant."""
INTERACTIVE_FETCH_MS: Final = 3_000
"""A car that has to fetch inputs may be silent for so long more: a process begins, and asks."""
INTERACTIVE_FETCH_BYTES_PER_MS: Final = 1_024
"""And for as long as they take at this speed."""
OIP_BODY_MAX_S: Final = 20.0
OIP_LENGTH_DIGITS_MAX: Final = 12
INTERACTIVE_ENDED_MAX: Final = 4_096
"""Units that ended lately, so that what a car still says of one is known for that."""

# --- units, attempts, leases ---------------------------------------------------------
UNIT_TARGET_MS: Final = 2_000
UNIT_ITEMS_MAX: Final = 256
OFFER_RESEND_MS: Final = 2_000
OFFER_TIMEOUT_MS: Final = 15_000
LEASE_MS: Final = 30_000
LEASE_PAST_HANG_MS: Final = 10_000
"""A lease outlives the engine's watchdog by this, so that a hang is told, not only suffered."""
LEASE_COLD_MS: Final = 90_000
"""What a lease allows on top, until the first chunk, for fetching and loading a model."""
LEASE_PER_EXPECTED: Final = 4
"""A lease is at least this many times the unit's expected run time."""
BACKLOG_TARGET_MS: Final = 2_500
"""The dispatcher keeps offering to a car until it holds about this much work."""
POISON_DISTINCT_CARS: Final = 3
"""An item that failed on this many distinct cars fails for good."""
ATTEMPTS_PER_ITEM_MAX: Final = 50
"""Upper bound on attempts of one item whatever their end (no livelock)."""

# --- the car ---------------------------------------------------------------------
CAR_UNITS_MAX: Final = 256
CHUNK_MAX_AGE_MS: Final = 250
CHUNK_ITEMS_MAX: Final = 32
CHUNK_RESEND_MS: Final = 3_000
CHUNK_RESEND_MAX_MS: Final = 60_000
CHUNKS_UNANSWERED_MAX: Final = 512
UNANSWERED_MAX_BYTES: Final = 96 * 1024 * 1024
"""Finished work that waits for the dispatcher, encoded. A car that holds more computes nothing:
what it has is kept, and what it has not begun is given back."""
UNANSWERED_MAX_CHUNKS: Final = 4_096
JOURNAL_MAX_BYTES: Final = 256 * 1024 * 1024
"""The journal's file: `UNANSWERED_MAX_BYTES`, the offers of all units (32 MB), the reserve."""
FENCES_REMEMBERED_MAX: Final = 4_096
JOURNAL_RESERVE_BYTES: Final = 64 * 1024 * 1024
STATE_REFRESH_MS: Final = 10_000
SENSOR_STALE_MS: Final = 5_000
DECISION_MAX_AGE_MS: Final = 1_000
"""Nothing is begun by an older decision to go on: it is taken again first."""
THAW_GRACE_MS: Final = 5_000
"""How long a frozen engine waits for a reason that may pass: who fetches something from the boot
takes about 3 s. Far below a lease, which runs on."""
TERMINATE_GRACE_MS: Final = 50
"""A cancelled run that has not stopped by then, at a graph node, loses its process."""
CANCEL_NODE_MAX_MS: Final = 25
"""A batch is cut so that its longest node takes no longer: half of what a cancel may take."""
PROFILE_RUNS: Final = 3
"""Runs of a model whose nodes are timed, once per car and model; the fastest of each counts."""
PROFILE_FILE_MAX_BYTES: Final = 16 * 1024 * 1024
"""What the worker may write to any file; a profile beyond that is no profile."""
ENGINE_IDLE_EXIT_MS: Final = 30_000
ENGINE_HANG_MS: Final = 20_000
ENGINE_MEMORY_MAX_BYTES: Final = 4 * 1024 * 1024 * 1024
PACKAGE_MAX_BYTES: Final = 2 * 1024 * 1024 * 1024
PACKAGE_MAX_FILES: Final = 256
PACKAGE_MANIFEST_MAX_BYTES: Final = 256 * 1024
RESIDENT_MODELS_MAX: Final = 4
"""Models named in a Birth or state; the registry has this many columns for them."""

# --- the dispatcher -----------------------------------------------------------------
FLEET_MAX_CARS: Final = 10_000_000
STATE_STALE_MS: Final = 35_000
"""A car whose last state is older gets no offers."""
TICK_EVENTS_MAX: Final = 4_096
COMMIT_RETRY_MAX_S: Final = 5.0
STORE_RESERVE_BYTES: Final = 64 * 1024 * 1024
"""With less room than this on its disk the dispatcher accepts no job: it is kept for results."""
FEED_PAGE_ITEMS: Final = 512
REQUEST_MAX_BYTES: Final = 4 * 1024
"""Largest request that a tenant may send over the bus."""
ANSWERS_TOPIC_MAX_CHARS: Final = 256
REQUESTS_PER_S: Final = 50
"""Requests of one tenant over the bus that are answered; a page of results each."""
REQUESTS_BURST: Final = 200
"""And so many at once; no more of one tenant's wait."""
REQUESTS_WAITING_MAX: Final = 2_048
"""Requests of all tenants that wait for their turn."""
REQUEST_REFUSED_EVERY_MS: Final = 1_000
"""A tenant over its rate is told so at most this often."""
REQUEST_BUSY_RETRY_MS: Final = 2_000
BROKER_TENANTS_MAX: Final = 1_000
"""Users of tenants in one broker's files."""
BROKER_TENANT_FILE_MAX_BYTES: Final = 1024 * 1024
SUBSCRIPTION_JOBS_MAX: Final = 100_000
"""Jobs that one subscription keeps a cursor of; beyond it those that are read to their end go."""
SUBSCRIPTION_HELD_ENTRIES_MAX: Final = 4_096
"""Results that wait for an earlier one; more are let go, and fetched when their turn comes."""
SUBSCRIPTION_HELD_BYTES_MAX: Final = 16 * 1024 * 1024
SUBSCRIPTION_ASKS_MAX: Final = 8
"""Requests of one subscription that wait for an answer."""
SUBSCRIPTION_ANSWER_S: Final = 5.0
"""A request without an answer is sent again after so long, then after twice that."""
SUBSCRIPTION_ANSWER_MAX_S: Final = 60.0
SUBSCRIPTION_SILENCE_S: Final = 60.0
"""A job that has not ended and of which so long nothing was heard is asked for."""
RECENT_RESULTS_MAX: Final = 4_096
"""Results kept in memory after their commit, for readers that keep up."""
RECENT_RESULTS_BYTES_MAX: Final = 4 * 1024 * 1024
STORY_EVENTS_MAX: Final = 64

# --- model packages and inputs ------------------------------------------------------
PACKAGE_SPEC_MAX_BYTES: Final = 64 * 1024
PACKAGE_PATH_MAX_CHARS: Final = 255
PACKAGE_TENSORS_MAX: Final = 64
"""Inputs, and outputs, that a model may declare."""
ONNX_NESTING_MAX: Final = 64
"""Subgraphs inside subgraphs of an ONNX file before it is refused unread."""
FETCH_TIMEOUT_S: Final = 30.0
"""Longest silence of a package server in the middle of a download, and longest until it answers."""
FETCH_RATE_MIN_BYTES_PER_S: Final = 4_096
"""A package server that sends slower than this over a whole window is given up."""
FETCH_RATE_WINDOW_S: Final = 30.0
FETCH_ANSWER_MAX_BYTES: Final = 4 * 1024 * 1024
"""What the downloading process may tell the car in one line: a manifest and its proof."""
FETCH_MEMORY_MAX_BYTES: Final = 1024 * 1024 * 1024
"""Address space of the downloading process."""
CLOCK_SLACK_S: Final = 3_600
"""A clock may be this far behind a moment that it has shown before: summer time, a reset."""
PARTIAL_DOWNLOADS_MAX: Final = 4
"""Broken downloads that are kept to go on later; of more, the oldest go."""
PACKAGES_FIRST_CHECK_S: Final = 300
PACKAGES_CHECK_S: Final = 6 * 3600
"""How often a car asks whether the packages that it holds are still published."""

# --- signed model repositories ---------------------------------------------------------
ROOT_METADATA_MAX_BYTES: Final = 256 * 1024
TIMESTAMP_METADATA_MAX_BYTES: Final = 16 * 1024
SNAPSHOT_METADATA_MAX_BYTES: Final = 256 * 1024
TARGETS_METADATA_MAX_BYTES: Final = 4 * 1024 * 1024
"""Of the list of publishers, and of one publisher's list of packages: about 8,000 of them."""
ROOT_ROTATIONS_MAX: Final = 256
"""Versions of the root that a car follows from the one it was given; then it needs a newer file."""
PUBLISHERS_MAX: Final = 64
ROLE_KEYS_MAX: Final = 16
KEY_FILE_MAX_BYTES: Final = 16 * 1024
REPOSITORY_LOCK_WAIT_S: Final = 30.0
"""A writer waits for another one so long; publishing takes well under a second but for copying."""
REPOSITORY_CHECK_S: Final = 60.0
"""How often a dispatcher looks whether its repository's online metadata must be signed again."""
IMAGE_MAX_PIXELS: Final = 40_000_000
IMAGE_MAX_SIDE: Final = 16_384
IMAGE_PARTS_MAX: Final = 4_096
"""Chunks of a PNG or segments of a JPEG that are looked at; a picture has dozens."""
AUDIO_MAX_S: Final = 600
AUDIO_MAX_HZ: Final = 192_000
INPUT_TEXT_MAX_BYTES: Final = 64 * 1024
TOKEN_IDS_MAX: Final = 1 << 20
"""Tokens that a vocabulary may number; the largest of today's models have a quarter of that."""
TOKENIZER_CHARACTERS_MAX: Final = 16_384
"""Characters whose normalised form is kept; with more than that the table begins anew."""
TEXT_STRIP_MAX_PIXELS: Final = 3_200
"""Width of one line of text at the reader's height of 48; a longer one is squeezed."""
DETECTIONS_MAX: Final = 1_000
"""Boxes, or pieces of text, that one item may end in; the best are kept."""

# --- text generation ----------------------------------------------------------------
GENERATION_CONTEXT_MAX_TOKENS: Final = 4_096
"""Prompt and answer of one request; a package declares its own bound below this."""
GENERATION_NEW_MAX_TOKENS: Final = 4_096
GENERATION_NEW_DEFAULT_TOKENS: Final = 256
GENERATION_ROWS_MAX: Final = 16
"""Requests that a car computes together; what a batch gains ends about here on one core."""
GENERATION_KV_MAX_BYTES: Final = 512 * 1024 * 1024
"""Address space of the keys and values of all rows; memory only as far as rows are long."""
GENERATION_PREFILL_TOKENS: Final = 64
"""Tokens of one prompt that are read between two steps of the requests beside it."""
GENERATION_STOPS_MAX: Final = 8
GENERATION_STOP_MAX_CHARS: Final = 128
GENERATION_MESSAGES_MAX: Final = 256
GENERATION_TEMPERATURE_MAX: Final = 100.0
GENERATION_TIMEOUT_MS: Final = 600_000
"""For a whole text; usual clients wait as long."""
GENERATION_CHUNK_MAX_TOKENS: Final = 8
GENERATION_CHUNK_MAX_MS: Final = 50
"""A stream's tokens are told when this is over by the end of the next step."""
GENERATION_QUIET_MS: Final = 500
"""How often a generation that nobody streams says that it gets on, for the watchdog."""

# --- the inference engine -----------------------------------------------------------
ENGINE_RUNS_MAX: Final = 4_096
ENGINE_QUEUED_MAX_BYTES: Final = 64 * 1024 * 1024
ENGINE_FRAME_MAX_BYTES: Final = 64 * 1024 * 1024
ENGINE_LOAD_HANG_MS: Final = 60_000
ENGINE_START_HANG_MS: Final = 30_000
ENGINE_HANG_PER_REFERENCE: Final = 20
"""An item may take this many times its model's reference time before it counts as hung."""
ENGINE_HANG_MIN_MS: Final = 5_000
"""Whatever was measured, an item may compute for so long: inputs differ in size."""
ENGINE_HANG_MAX_MS: Final = 600_000
"""Whatever a package says of its reference time, an item that takes longer is hung."""
ENGINE_HANG_PER_MEASURED: Final = 50
"""An item may compute this many times what the slowest recent item of its model did."""
ENGINE_OUTBOX_BYTES: Final = 256 * 1024
"""Shared memory in which the worker's unsent events outlive it."""
ENGINE_UNSENT_EVENTS_MAX: Final = 65_535
"""Events in it; a MessagePack array with two bytes of length has no more."""
NODE_TIMES_FILE_MAX_BYTES: Final = 64 * 1024
ENGINE_DEATHS_WITHOUT_WORK_MAX: Final = 3
"""Workers that may die in a row with nothing finished between before the next has to wait."""
ENGINE_LOG_LINE_MAX_BYTES: Final = 512
ENGINE_LOG_LINES_PER_S: Final = 20
ENGINE_LOG_BUFFER_MAX_BYTES: Final = 64 * 1024
ENGINE_RESTART_MAX_S: Final = 30.0
ENGINE_OPEN_FILES_MAX: Final = 128
ENGINE_STOP_FRAME_MAX_BYTES: Final = 256
ENGINE_STOP_MEASURE_MAX_MS: Final = 2_000
"""A frozen process whose threads still run after this is reported as it is."""
ENGINE_EVENT_BATCH_MS: Final = 20
"""The worker gathers events of items faster than this into one write: a write wakes another core,
which on a 5 ms model costs 1.6 % of its speed."""
ENGINE_URGENT_EVENT_MS: Final = 2
"""An item of an urgent run that took so long is told by itself; faster ones with their run."""
ENGINE_EVENT_LATE_MS: Final = 40
"""Longest that an event waits in the worker; a kill loses that much finished work."""
POOLS_MAX: Final = 4_096
"""Distinct requirement sets with a candidate pool."""
POOL_CANDIDATES: Final = 512
SMALL_FLEET_CARS: Final = 10_000
EMPTY_POOL_REBUILD_MS: Final = 250
WAIT_TOLERANCE_MS: Final = 20
"""Two cars whose expected waits differ by less are equals."""
COLD_START_MS: Final = 500
"""What a model that is not resident adds to a car's expected wait."""
STATUS_PUBLISH_INTERVAL_MS: Final = 1_000
STATUS_QUIET_MS: Final = 50
"""A job's retained status waits until results have paused for this long: results go first."""
REBIRTHS_PER_TICK_MAX: Final = 200
"""Rebirth orders a tick: a fleet that comes back at once is asked gradually."""
GREETINGS: Final = 4
"""How often a dispatcher that has started asks silent cars to introduce themselves."""
GREETING_MS: Final = 500
GREETED_CARS_MAX: Final = 2_000
TENANT_WINDOW_JOBS_MIN: Final = 1_000
LOAD_ITEMS: Final = 512
LOAD_BYTES: Final = 4 * 1024 * 1024
LOADS_MAX: Final = 256
"""Reads of items that the core has asked for and not been answered."""
CHUNKS_PER_UNIT_MAX: Final = 1_024
"""Chunks of one attempt whose time and energy are counted."""
ENDED_JOBS_KEPT_MAX: Final = 20_000
"""Jobs that ended lately, remembered to tell what was read from the store before they did."""
POOL_STRETCH_FLEET_CARS: Final = 200_000
"""From here on a pool is built from one stretch of the registry, where that has enough cars."""
POOL_WARM_ENOUGH: Final = 256
POOL_MAX_AGE_MS: Final = 1_000
"""On a small fleet, a pool older than this is rebuilt before it is used."""
ALONE_TRIES_PER_PLACEMENT: Final = 32
"""Isolated items of a job that are looked at for one that some free car may try."""
PUBLISH_IN_FLIGHT_MAX: Final = 64

# --- the car's core, journal, policy and sensors ----------------------------------------
POLICY_FILE_MAX_BYTES: Final = 64 * 1024
POLICY_WINDOWS_MAX: Final = 64
POLICY_NAMES_MAX: Final = 256
POLICY_AHEAD_MAX_MIN: Final = 7 * 24 * 60
"""How long before, or after, a departure a rule may count."""
POLICY_BUDGET_MAX_WH: Final = 1e6
POLICY_BUDGET_MAX_MB: Final = 1e7
POLICY_PRICE_MAX: Final = 1e6
POLICY_CYCLES_PER_YEAR_MAX: Final = 10_000
POLICY_CYCLES_PER_DAY_MAX: Final = 10_000
OWNER_DECISIONS_MAX_BYTES: Final = 4 * 1024
OWNER_REQUEST_MAX_BYTES: Final = 4 * 1024
OWNER_ANSWER_MAX_BYTES: Final = 256 * 1024
OWNER_CLIENTS_MAX: Final = 16
"""Owner's commands, or readers of the owner's page, that are answered at once."""
OWNER_TALK_MAX_S: Final = 5.0
"""Longest that a request or an answer of an owner's command, or of the page, may take."""
DWELL_MAX_S: Final = 24 * 3600
STOP_REPORT_WAIT_MS: Final = 50
"""A release waits this long for the measured stop; then it goes without."""
CHUNK_RESEND_SPREAD_MS: Final = 25
"""Between two messages of the chunks that are sent again after a reconnect."""
STATE_EDGE_MS: Final = 1_000
"""READY to WORKING and back is told at most this often: it changes with every unit."""
REFUSAL_RETRY_MS: Final = 500
REFUSAL_WAIT_MIN_MS: Final = 200
REFUSED_JOB_MS: Final = 60_000
"""A car that will not do a job, whatever it is free for, is not asked again for so long."""
REFUSERS_PER_JOB_MAX: Final = 1_024
HOLD_RETRY_MS: Final = 5_000
MODEL_RETRY_MS: Final = 10_000
MODEL_INVALID_RETRY_MS: Final = 600_000
MODELS_KNOWN_MAX: Final = 256
ENGINE_DEATHS_MAX: Final = 3
"""Deaths in a row, none further apart than the window, after which the car takes no work."""
ENGINE_DEATHS_WINDOW_MS: Final = 60_000
ENGINE_UNHEALTHY_MS: Final = 30_000
ENGINE_UNHEALTHY_MAX_MS: Final = 600_000
STORAGE_RETRY_MS: Final = 1_000
VERDICTS_WAITING_MAX: Final = 1_024
CAR_STORY_EVENTS_MAX: Final = 512
CAR_CLOSE_MAX_S: Final = 2.0
JOURNAL_LAZY_MS: Final = 50
"""A commit that holds nothing but started items waits this long for company: a crash may blame
the item before. At 20 ms, its commits alone took 1 % of a 5 ms model's speed on two cores."""
SENSOR_PERIOD_MS: Final = 1_000
SENSOR_LINE_MAX_BYTES: Final = 4_096
SENSOR_TABLE_MAX_BYTES: Final = 256 * 1024
SENSOR_FROZEN_MS: Final = 60_000
"""A measurement that its provider has not written again for so long is not believed."""
SENSOR_EDGES_PER_S_MAX: Final = 100
"""A source that tells more is heard every `SENSOR_FLOOD_MS`, with the newest of each signal."""
SENSOR_FLOOD_MS: Final = 20
KUKSA_ANSWER_MAX_S: Final = 2.0
KUKSA_BUFFER_MESSAGES: Final = 1_000
"""Messages that the databroker keeps for a slow subscriber; its own bound."""
KUKSA_RECONNECT_FIRST_S: Final = 0.25
KUKSA_RECONNECT_MAX_S: Final = 5.0
TRACE_MAX_BYTES: Final = 64 * 1024 * 1024
TRACE_ROWS_MAX: Final = 1_000_000
TRACE_LINE_MAX_BYTES: Final = 4_096
TRACE_SPEED_MAX: Final = 1_000_000.0
DAY_MAX_S: Final = 8 * 86_400.0
"""The longest trace that `owner day` lives: it is kept whole in memory, minute by minute."""
DAY_UTC_MAX_S: Final = 253_000_000_000.0
"""Seconds UTC at which it may begin: calendars end with the year 9999."""
HOSTS_KNOWN_MAX: Final = 64
CAR_ASLEEP_MS: Final = 20_000
"""A car that was not woken for so long slept, or was stopped: its timers come every 5 s."""
REALTIME_SOFT_MS: Final = 500
"""An agent of the real-time class that runs so long without a pause goes back to the ordinary."""
REALTIME_HARD_MS: Final = 5_000
REALTIME_QUIET_MS: Final = 10_000
"""Having given it back, it asks again when it was quiet for so long; then for twice as long."""
REALTIME_QUIET_MAX_MS: Final = 600_000
REALTIME_QUIET_SHARE: Final = 0.25
"""Quiet is to have used at most this share of a core."""
CAR_TIMER_MAX_MS: Final = 5_000
"""A computer that slept has older boot time than its timers know: it looks at least this often."""
CAR_BUS_TURN_MS: Final = 2
"""Messages are taken for this long before a sensor, the engine and the journal have a turn."""
CAR_FAREWELL_MS: Final = 300
ENGINE_SILENCE_MAX_S: Final = ENGINE_HANG_MAX_MS / 1000 + 60
"""An engine with work and no output for so long has escaped its own watchdog: systemd's is not
fed any more."""
UPGRADE_COMMAND_MAX_S: Final = 180.0
"""Longest that systemctl, or the doctor of a new release, may take."""
UPGRADE_HEALTHY_MAX_S: Final = 3_600.0
CAR_ASLEEP_AWAKE_MAX_S: Final = 60.0
"""A car that was told of a sleep, and sees so much time pass awake, takes up its work again."""
STORE_SILENCE_MAX_S: Final = 30.0
"""A commit of the dispatcher that neither ends nor fails for so long starves its watchdog."""
MODELS_URL_WAIT_MS: Final = 5_000
"""A dispatcher that is only about to say where it serves packages is waited for this long."""
ITEM_TIME_MAX_MS: Final = 3_600_000
"""A longer reported item time is not believed."""
CANCELS_MAX: Final = 100_000
CANCEL_GIVE_UP_MS: Final = 60_000
"""A cancel is re-sent this long; a car that comes back later hears it again with its next chunk."""

# --- the HTTP API --------------------------------------------------------------------
HTTP_LARGE_BODY_BYTES: Final = 1024 * 1024
"""A larger body is decoded and checked outside the event loop, its items counted first."""
HTTP_SMALL_BODY_MAX_BYTES: Final = 1024 * 1024
"""Largest body of a request that is not a submission; a requeue that lists a million items
must name none instead, which means all."""
HTTP_BODIES_MAX_BYTES: Final = 512 * 1024 * 1024
"""All request bodies being read at once; one more is refused with 503."""
HTTP_STREAMS_MAX: Final = 2_048
HTTP_PAGE_MAX: Final = 1_000
"""Largest `limit` of a list."""
HTTP_COUNT_MAX: Final = 2**62
"""Largest number in a query: a cursor, a position, an offset."""
HTTP_STREAM_WRITE_BYTES: Final = 256 * 1024
"""A page of a stream is written in pieces of about this."""
HTTP_STREAM_STALL_S: Final = 120.0
"""A stream whose reader takes nothing for so long is cut; the reader resumes by its cursor."""
HTTP_FILE_CHUNK_BYTES: Final = 256 * 1024
HTTP_SHUTDOWN_S: Final = 5
HTTP_CONNECTIONS_MAX: Final = 10_000
"""Connections at once, where the process may open as many files; one costs 10 to 15 KB."""
HTTP_FILES_RESERVED: Final = 384
"""Of the files that a process may open, those that are no connections: the turns of accepting
(`HTTP_ACCEPTS_A_TURN`) before the first of them can be refused and closed, which are four, and the
store, the broker, files being read."""
HTTP_ACCEPTS_A_TURN: Final = 32
HTTP_BACKLOG: Final = 256
"""Connections that wait in the kernel to be accepted."""
HTTP_IDLE_KEPT_S: Final = 1.0
"""A connection that has had no request for so long makes room for a new one where there is none."""
HTTP_HEAD_S: Final = 20.0
"""How long a connection may be without a request, the time in which its head comes included."""
HTTP_HEAD_MAX_BYTES: Final = 64 * 1024
HTTP_HEADERS_MAX: Final = 128
HTTP_LENGTH_DIGITS_MAX: Final = 20
"""Of a Content-Length: the parser takes what fits in 64 bits."""
HTTP_PIPELINE_MAX: Final = 16
"""Requests that wait on a connection behind the one that is being answered."""
HTTP_UNREAD_S: Final = 180.0
"""An answer of which the reader takes nothing for so long is cut, with its connection."""
HTTP_LINGER_S: Final = 2.0
"""What still comes on a refused connection is read for so long, so that the refusal arrives."""
HTTP_LINGERING_MAX: Final = 64
HTTP_BODY_MIN_BYTES_PER_S: Final = 4 * 1024
"""A body comes at least as fast on the whole, after `UPLOAD_SILENCE_S` for its beginning."""

# --- what operators see -----------------------------------------------------------------
ACTIVITY_BUCKET_MS: Final = 5_000
"""The recent past is told in stretches of this length."""
ACTIVITY_BUCKETS_MAX: Final = 120
"""Ten minutes of them."""
ACTIVITY_KNOWN_MAX: Final = 50_000
"""Jobs, and units, whose model and beginning are remembered to tell of their ends."""
METRICS_MODELS_MAX: Final = 100
"""Models with series of their own; what comes after them is counted as "(others)"."""
METRICS_REGIONS_MAX: Final = 100
METRICS_EVENTS_MAX: Final = 512
"""Named counters that are exposed, in the order of their names."""
TOTALS_TENANTS_MAX: Final = 1_000
"""Tenants whose totals are kept in memory; those of all are in the store."""
TOTALS_WAITING_MAX: Final = 50_000
"""Work of interactive requests, by tenant and car, that waits to be written; more is dropped."""
TOTALS_WRITE_S: Final = 5.0
"""Totals of interactive work are written this often: so much is lost with the process."""
DASHBOARD_TENANTS_MAX: Final = 20
METRICS_TENANTS_MAX: Final = 100
DASHBOARD_STREAMS_MAX: Final = 64
"""Open dashboards; one more is refused with 503."""
DASHBOARD_PERIOD_S: Final = 1.0
DASHBOARD_JOBS_MAX: Final = 50
DASHBOARD_ENDED_JOBS_MAX: Final = 10
DASHBOARD_JOBS_LOOK_MAX: Final = 5_000
"""Open jobs, and units on cars, that are looked at for those that are shown."""
DASHBOARD_ATTEMPTS_MAX: Final = 500
"""Attempts of a job on its timeline: the newest."""
DRAIN_MAX_S: Final = 10.0
"""How long a dispatcher that is asked to stop waits for units that cars have in hand; a unit is
about 2 s. What is not done by then goes on without it, and is taken up by its next life."""
DRAIN_ANSWERS_MAX_S: Final = 18.0
"""How long it waits, from the same moment, for the answers of those who wait: they have no next
life. With all that follows it has ended within 30 s."""

# --- the Python client ------------------------------------------------------------------
CLIENT_BACKOFF_FIRST_S: Final = 0.05
CLIENT_BACKOFF_MAX_S: Final = 5.0
CLIENT_UNREACHABLE_S: Final = 60.0
"""Without one answer for so long, the client raises `DispatcherUnreachable`."""
CLIENT_SILENT_WAIT_S: Final = 10.0
"""A client that is to go on for longer says that it waits, and for what."""
CLIENT_CONNECT_TIMEOUT_S: Final = 5.0
CLIENT_ANSWER_TIMEOUT_S: Final = 60.0
CLIENT_STREAM_SILENCE_S: Final = 45.0
"""Three missed heartbeats: the stream is taken for dead and opened again."""
CLIENT_STREAM_VALUE_MAX_BYTES: Final = 8 * 1024 * 1024
CLIENT_REQUESTS_IN_FLIGHT: Final = 4
CLIENT_REQUEST_TARGET_BYTES: Final = 4 * 1024 * 1024
"""A request of `submit_many` closes at `JOBS_PER_REQUEST_MAX` jobs or about this size."""
CLIENT_OPEN_JOBS_MAX: Final = 20_000
CLIENT_EARLY_ENTRIES_MAX: Final = 20_000
"""Results of jobs whose answer has not come yet; with more, the feed waits for the answer."""
CLIENT_RESULT_PAGES_MAX: Final = 64
CLIENT_QUIET_CHECK_S: Final = 10.0
CLIENT_QUIET_CHECKS_MAX: Final = 64
PLACEMENTS_PER_TICK_MAX: Final = 10_000
INBOX_EVENTS_MAX: Final = 20_000
"""Decoded events that wait for the dispatcher's next tick; above it reading the bus pauses."""
PUBLISH_QUEUE_ENTRIES_MAX: Final = 20_000
"""Results that wait in memory for the broker; above it they are read from the store later."""
PUBLISH_QUEUE_BYTES_MAX: Final = 32 * 1024 * 1024
STATUSES_WAITING_MAX: Final = 50_000
PUBLISHED_FLUSH_S: Final = 0.5
SWEEP_INTERVAL_S: Final = 30.0
SWEEP_JOBS: Final = 500
FLEET_AGGREGATE_INTERVAL_S: Final = 10.0
HOST_ANNOUNCE_AGAIN_S: Final = 30.0
"""Every car hears it: so often at most, when a car with work could not find the packages."""
HOST_ANNOUNCE_EVERY_S: Final = 600.0
"""And so often in any case: for cars that only hold models ready."""
STREAM_HEARTBEAT_S: Final = 15.0
OPEN_JOBS_COUNT_REFRESH_S: Final = 5.0

# --- the energy ledger ------------------------------------------------------------------
ENERGY_GAP_MAX_MS: Final = 2 * CAR_TIMER_MAX_MS
"""Longest time between two looks that counts as computing; more is a computer that slept."""
ENERGY_READING_MAX_MS: Final = 3_000
"""A measured power is taken for the present one for this long; then the model has its place."""
ENERGY_RIDE_MS: Final = 10_000
"""The ledger is written with a chunk at most this often, and with every unit's last one."""
ENERGY_WRITE_MS: Final = 60_000
"""Without a chunk to ride with, the ledger is written at most this often."""
ENERGY_IDLE_WRITE_MS: Final = 3_600_000
"""And while nothing but a few bytes was spent, at most this often."""
ENERGY_BYTES_SMALL: Final = 256 * 1024
"""Bytes of a second that may be lost with the process."""
ENERGY_DAYS_KEPT_MAX: Final = 400
"""Days kept one by one; older ones are folded into one row."""
ENERGY_MODEL_ITEMS_MAX: Final = 4_096
"""From here on a model's older items count half: its cost on this car may change."""
POWER_MAX_W: Final = 10_000.0
"""No car's computer draws more: a counter that says so is not believed."""
PACK_MAX_KWH: Final = 1_000.0
ENERGY_FILE_MAX_BYTES: Final = 64
"""A counter's file in sysfs holds one number."""

# --- identity ---------------------------------------------------------------------------
PKI_FILE_MAX_BYTES: Final = 64 * 1024
"""Largest key, certificate, request or answer that is read."""
TRUSTED_KEYS_MAX: Final = 8
"""Public keys a car trusts at once; a change of the dispatcher's key needs two."""
CERTIFICATE_DAYS_MAX: Final = 3_650
IDENTITY_LOOK_S: Final = 10.0
"""A car looks this often whether its certificates or trusted keys were replaced."""
RENEWED_QUIET_WAIT_MAX_S: Final = 3_600
"""A car that never rests connects with its renewed certificate after this all the same."""
RENEWAL_CHECK_S: Final = 24 * 3_600.0
"""A car looks this often whether two thirds of its certificate's life have passed."""
RENEWAL_RETRY_FIRST_S: Final = 600.0
"""Upper end of the first delay after a failed renewal; it doubles up to the next bound."""
RENEWAL_RETRY_MAX_S: Final = 6 * 3_600.0
RENEWAL_RUN_MAX_S: Final = 120.0
"""A renewal command that takes longer is killed; that renewal has failed."""

# --- the simulation -------------------------------------------------------------------
SIM_STEPS_MAX: Final = 300_000
"""A world that takes more steps runs in a circle; an ordinary one takes 5,000 to 20,000."""
SIM_ATTEMPTS_PER_UNIT_MAX: Final = 400
SIM_STARTS_PER_ITEM_MAX: Final = 100
"""Beyond this an item of a simulated world is begun for ever."""
SIM_STREAM_PIECES_MAX: Final = 16
SIM_OFFERS_KEPT_MAX: Final = 200
SIM_ITEMS_IN_DOUBT_MAX: Final = 4
SIM_STORY_LINES_MAX: Final = 20_000
SIM_SEEDS_PER_TASK: Final = 8
SIM_PROCESSES_MAX: Final = 64
SIM_SHRINK_RUNS_MAX: Final = 60
SIM_SHRINK_MAX_S: Final = 60.0
