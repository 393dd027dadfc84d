"""Every statement that storage runs, by name. Parameters are named; plans are asserted by tests."""

# --- requests -------------------------------------------------------------------------

REQUEST_OPEN = """
INSERT INTO requests (id, state, kind, model, idempotency_key, body_sha256, received_at_ms,
    accepted_egress, accepted_target, accepted_fingerprint, lives, body, task, arm)
VALUES (:id, 'running', :kind, :model, :idempotency_key, :body_sha256, :received_at_ms,
    :accepted_egress, :accepted_target, :accepted_fingerprint, :lives, :body, :task, :arm)
"""

REQUEST_OF_KEY = "SELECT id, state, body_sha256, body IS NULL AS gone FROM requests WHERE idempotency_key = :key"

# A request that ended without an answer gives its key back: the caller may try again.
REQUEST_RELEASE_KEY = "UPDATE requests SET idempotency_key = NULL WHERE id = :id"

REQUEST_SETTLE = """
UPDATE requests SET state = :state, settled_at_ms = :now_ms, action = :action, reason = :reason,
    confidence = :confidence, decision = :decision, answered_by = :answered_by,
    bodies_until_ms = :bodies_until_ms, body = CASE WHEN :forget THEN NULL ELSE body END
WHERE id = :id AND state = 'running'
"""

# The end, or the second beginning, of a request that has an outbox row.
REQUEST_FOLLOW = """
UPDATE requests SET state = :state, settled_at_ms = :now_ms, bodies_until_ms = :bodies_until_ms,
    answered_by = coalesce(:answered_by, answered_by), fetched_at_ms = NULL
WHERE id = :id
"""

REQUEST_FETCHED = """
UPDATE requests SET fetched_at_ms = :now_ms, bodies_until_ms = min(bodies_until_ms, :bodies_until_ms)
WHERE id = :id AND fetched_at_ms IS NULL AND bodies_until_ms IS NOT NULL AND state IN ('resolved', 'unresolved')
"""

REQUEST_GET = "SELECT * FROM requests WHERE id = :id"
REQUEST_BODY_LENGTH = "SELECT length(body) AS bytes FROM requests WHERE id = :id"

_REQUEST_HEAD = "SELECT id, state, model, received_at_ms, settled_at_ms, confidence, decision, answered_by, NULL AS body FROM requests"
REQUEST_LIST = _REQUEST_HEAD + " WHERE id < :before_id ORDER BY id DESC LIMIT :limit"
# What waited and has come to an end, by the moment of that; without since_ms what nobody has fetched.
REQUEST_LATE = """
SELECT id FROM requests WHERE state IN ('resolved', 'unresolved') AND id > :after_id AND body IS NOT NULL
    AND CASE WHEN :since_ms IS NULL THEN fetched_at_ms IS NULL ELSE settled_at_ms >= :since_ms END
ORDER BY id LIMIT :limit
"""
REQUEST_LIST_STATE = _REQUEST_HEAD + " WHERE state = :state AND id < :before_id ORDER BY id DESC LIMIT :limit"
REQUEST_RUNNING = """
SELECT body, accepted_egress, accepted_target, accepted_fingerprint FROM requests
WHERE state = 'running' AND lives IS NULL ORDER BY id LIMIT :limit
"""
# A request that was begun in too many lives counts as one that nobody takes up.
REQUEST_LIVES = """
UPDATE requests SET lives = CASE WHEN lives < :most_lives THEN lives + 1 END WHERE state = 'running' AND lives IS NOT NULL
"""
REQUEST_BACKGROUND = """
SELECT body, accepted_egress, accepted_target, accepted_fingerprint FROM requests
WHERE state = 'running' AND lives IS NOT NULL ORDER BY id LIMIT :limit
"""
REQUEST_COUNTS = "SELECT state, n_rows FROM request_counts"
# Without a target it will wait for a person, if it may leave at all.
REQUESTS_RESTORED = """
UPDATE requests SET accepted_target = NULL, accepted_fingerprint = NULL,
    accepted_egress = CASE WHEN accepted_egress IN ('allow', 'redact') THEN 'approve' ELSE accepted_egress END
WHERE state = 'running'
"""
REQUEST_DELETE = "DELETE FROM requests WHERE id = :id"
# With an open row goes what tells of its send: a served answer that is being checked stays, too.
REQUEST_DELETE_ENDED = """
DELETE FROM requests WHERE id = :id AND state NOT IN ('running', 'queued') AND NOT EXISTS (
    SELECT 1 FROM escalations WHERE request_id = :id AND state IN ('awaiting_approval', 'pending', 'leased')
)
"""

REQUEST_TO_PURGE = """
SELECT id, ifnull(length(body), 0)
    + (SELECT ifnull(sum(length(body)), 0) FROM results WHERE request_id = requests.id) AS bytes
FROM requests WHERE bodies_until_ms IS NOT NULL AND bodies_until_ms <= :now_ms
ORDER BY bodies_until_ms LIMIT :limit
"""
REQUEST_SHIFT = """
UPDATE requests SET bodies_until_ms = min(bodies_until_ms + :jump_ms, :now_ms + :longest_ms)
WHERE bodies_until_ms IS NOT NULL
"""
# An ended request without texts, and nothing of an answer that is still to be fetched.
REQUEST_TO_DROP = """
SELECT id FROM requests INDEXED BY requests_to_drop
WHERE bodies_until_ms IS NULL AND state NOT IN ('running', 'queued') AND settled_at_ms <= :settled_before_ms
ORDER BY settled_at_ms LIMIT :limit
"""
REQUEST_UNFETCHED = """
SELECT count(*) AS n_rows FROM requests INDEXED BY requests_unfetched
WHERE state = 'resolved' AND fetched_at_ms IS NULL AND bodies_until_ms IS NOT NULL
"""
REQUEST_FORGET = "UPDATE requests SET body = NULL, bodies_until_ms = NULL WHERE id = :id"

# --- results --------------------------------------------------------------------------

RESULT_PUT = """
INSERT INTO results (request_id, source, created_at_ms, body, model, input_tokens, output_tokens, tokens_estimated,
    duration_ms)
VALUES (:request_id, :source, :now_ms, :body, :model, :input_tokens, :output_tokens, :tokens_estimated, :duration_ms)
ON CONFLICT (request_id, source) DO UPDATE SET created_at_ms = excluded.created_at_ms, body = excluded.body,
    model = excluded.model, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
    tokens_estimated = excluded.tokens_estimated, duration_ms = excluded.duration_ms
"""
LABEL_COUNT = """
INSERT INTO label_counts (day, task, label, answers) VALUES (:day, :task, :label, 1)
ON CONFLICT (day, task, label) DO UPDATE SET answers = answers + 1
"""
RESULTS_GET = "SELECT source, body FROM results WHERE request_id = :id"
RESULTS_FORGET = "UPDATE results SET body = NULL WHERE request_id = :id"

# --- costs ----------------------------------------------------------------------------

COST_ADD = """
INSERT INTO costs (at_ms, request_id, escalation_id, target, model, task, arm, outcome, input_tokens, output_tokens,
    nanodollars, price)
SELECT :now_ms, :request_id, :escalation_id, :target, :model, task, arm, :outcome, :input_tokens, :output_tokens,
    :nanodollars, :price
FROM requests WHERE id = :request_id
"""

# --- escalations ----------------------------------------------------------------------

ESCALATION_INSERT = """
INSERT INTO escalations (id, request_id, state, reason, target, target_fingerprint, egress, handoff, allowed,
    max_attempts, turn_ms, created_at_ms, available_at_ms, expires_at_ms, bytes, task, purpose,
    estimated_input_tokens, estimated_output_tokens, priority, next_targets)
VALUES (:id, :request_id, :state, :reason, :target, :target_fingerprint, :egress, :handoff, :allowed,
    :max_attempts, :now_ms, :now_ms, :now_ms, :expires_at_ms, :bytes, :task, :purpose,
    :estimated_input_tokens, :estimated_output_tokens, :priority, :next_targets)
"""

# Rows whose time has come move to the index that claims read.
ESCALATION_PROMOTE = """
UPDATE escalations SET deferred = 0
WHERE state = 'pending' AND deferred = 1 AND target = :target AND available_at_ms <= :now_ms
"""

ESCALATION_CLAIM = """
UPDATE escalations SET state = 'leased', lease = :lease, lease_expires_at_ms = :lease_expires_at_ms
WHERE id = (
    SELECT id FROM escalations
    WHERE state = 'pending' AND deferred = 0 AND target = :target AND priority >= :least AND expires_at_ms > :now_ms
    ORDER BY priority DESC, turn_ms, id LIMIT 1
)
RETURNING *
"""

# Every settle is guarded by the lease: a worker that lost it changes nothing.
ESCALATION_HELD = "SELECT * FROM escalations WHERE id = :id AND lease = :lease AND state = 'leased'"

ESCALATION_END = """
UPDATE escalations SET state = :state, reason = coalesce(:reason, reason), last_error = coalesce(:error, last_error),
    lease = NULL, lease_expires_at_ms = NULL, deferred = 0, attempts = :attempts, settled_at_ms = :now_ms
WHERE id = :id AND state = :from_state AND lease IS :lease
RETURNING *
"""

ESCALATION_AGAIN = """
UPDATE escalations SET state = 'pending', lease = NULL, lease_expires_at_ms = NULL, last_error = :error,
    attempts = :attempts, snoozes = :snoozes, turn_ms = :now_ms, available_at_ms = :available_at_ms,
    deferred = :available_at_ms > :now_ms
WHERE id = :id AND lease = :lease AND state = 'leased'
RETURNING *
"""

# A row that a budget holds keeps its place in line.
ESCALATION_PUT_OFF = """
UPDATE escalations SET state = 'pending', lease = NULL, lease_expires_at_ms = NULL, last_error = :error,
    available_at_ms = :available_at_ms, deferred = 1
WHERE id = :id AND lease = :lease AND state = 'leased'
"""

# To the next target of its rule. What a person released was for the one before.
ESCALATION_MOVE_ON = """
UPDATE escalations SET state = iif(allowed, 'pending', 'awaiting_approval'), released = 0, target = :target,
    target_fingerprint = :target_fingerprint, next_targets = :next_targets, last_error = :error,
    reason = iif(allowed, reason, 'next_target'), lease = NULL, lease_expires_at_ms = NULL,
    attempts = 0, snoozes = 0, available_at_ms = :now_ms, deferred = 0
WHERE id = :id AND state = :from_state AND lease IS :lease
RETURNING *
"""
ESCALATION_TO_MOVE_ON = """
SELECT * FROM escalations INDEXED BY escalations_to_move_on
WHERE state = 'pending' AND target = :target AND next_targets IS NOT NULL AND turn_ms <= :before_ms LIMIT :limit
"""

# What a row was allowed or released for does not hold any more: a person decides anew.
ESCALATION_HOLD = """
UPDATE escalations SET state = 'awaiting_approval', reason = :reason, allowed = 0, released = 0,
    lease = NULL, lease_expires_at_ms = NULL, deferred = 0
WHERE id = :id AND state = :from_state AND lease IS :lease
RETURNING *
"""
ESCALATION_TO_HOLD = """
SELECT * FROM escalations
WHERE state = 'pending' AND target = :target
    AND (target_fingerprint IS NOT :target_fingerprint OR (released = 0 AND :only_released))
LIMIT :limit
"""

# From pending only for a target that is gone: nobody can be claiming it.
ESCALATION_RELEASE = """
UPDATE escalations SET state = 'pending', released = 1, target = :target, target_fingerprint = :target_fingerprint,
    available_at_ms = :now_ms, deferred = 0
WHERE id = :id AND state = :from_state AND expires_at_ms > :now_ms
"""

# What a person wrote is all that leaves: no draft goes along.
ESCALATION_EDIT = """
UPDATE escalations SET edited = :edited, handoff = 'fresh',
    bytes = length(:edited) + (SELECT ifnull(length(body), 0) FROM requests WHERE id = escalations.request_id)
WHERE id = :id AND state = 'awaiting_approval'
RETURNING *
"""
ESCALATION_FORGET = "UPDATE escalations SET edited = NULL WHERE request_id = :id AND edited IS NOT NULL"

# A person answers in the target's place: released by one, to one.
ESCALATION_TO_PERSON = """
UPDATE escalations SET released = 1, target = :person, target_fingerprint = :person, deferred = 0
WHERE id = :id AND state IN ('awaiting_approval', 'pending')
"""

ESCALATION_RETRY_BY_HAND = """
UPDATE escalations SET state = :state, reason = :reason, allowed = :allowed, released = :released, attempts = 0,
    snoozes = 0, settled_at_ms = NULL, available_at_ms = :now_ms, expires_at_ms = :expires_at_ms
WHERE id = :id AND state = :from_state
RETURNING *
"""

# After the clock was set. Moments that were stamped by a right clock must not move out of reach,
# hence the bound; rows that back off are due at once, for the same reason.
ESCALATION_SHIFT = """
UPDATE escalations SET expires_at_ms = min(expires_at_ms + :jump_ms, :now_ms + :longest_ms),
    turn_ms = turn_ms + :jump_ms, lease_expires_at_ms = lease_expires_at_ms + :jump_ms,
    available_at_ms = :now_ms, deferred = 0
WHERE state IN ('awaiting_approval', 'pending', 'leased')
"""

ESCALATION_HASTEN = """
UPDATE escalations SET deferred = 0, available_at_ms = :now_ms
WHERE state = 'pending' AND deferred = 1 AND target = :target
"""

ESCALATION_GET = "SELECT * FROM escalations WHERE id = :id"
ESCALATION_OF_REQUEST = "SELECT * FROM escalations WHERE request_id = :id"
ESCALATION_LIST = "SELECT * FROM escalations WHERE id > :after_id ORDER BY id LIMIT :limit"
ESCALATION_LIST_STATE = "SELECT * FROM escalations WHERE state = :state AND id > :after_id ORDER BY id LIMIT :limit"
ESCALATION_IDS = "SELECT id FROM escalations WHERE state = :state ORDER BY id"
ESCALATION_OLDEST = "SELECT created_at_ms FROM escalations WHERE state = :state ORDER BY id LIMIT 1"
ESCALATION_ENDED = """
SELECT request_id AS id, id AS row_id, bytes
    + (SELECT ifnull(sum(length(body)), 0) FROM results WHERE results.request_id = escalations.request_id) AS bytes
FROM escalations WHERE state = :state AND id > :after_id AND (:unfetched OR NOT EXISTS (
    SELECT 1 FROM requests WHERE requests.id = escalations.request_id
    AND requests.state = 'resolved' AND fetched_at_ms IS NULL AND bodies_until_ms IS NOT NULL
))
ORDER BY escalations.id LIMIT :limit
"""
ESCALATION_COUNTS = """
SELECT state, sum(n_rows) AS n_rows, sum(n_bytes) AS n_bytes FROM escalation_counts GROUP BY state
"""
ESCALATION_OPEN_TOTAL = """
SELECT ifnull(sum(n_rows), 0) AS n_rows, ifnull(sum(n_bytes), 0) AS n_bytes FROM escalation_counts
WHERE state IN ('awaiting_approval', 'pending', 'leased')
"""
ESCALATION_PENDING_FOR = """
SELECT ifnull(sum(n_rows), 0) AS n_rows FROM escalation_counts WHERE state = 'pending' AND target = :target
"""
ESCALATION_READY = """
SELECT 1 FROM escalations WHERE state = 'pending' AND deferred = 0 AND target = :target AND priority >= :least LIMIT 1
"""
ESCALATION_NEXT = """
SELECT available_at_ms FROM escalations
WHERE state = 'pending' AND deferred = 1 AND target = :target AND priority >= :least
ORDER BY available_at_ms LIMIT 1
"""
# INDEXED BY: without statistics the planner takes the index on state, and walks every open row.
ESCALATION_TO_EXPIRE = """
SELECT * FROM escalations INDEXED BY escalations_to_expire
WHERE state IN ('awaiting_approval', 'pending') AND expires_at_ms <= :now_ms
ORDER BY expires_at_ms LIMIT :limit
"""
ESCALATION_OVERDUE = """
SELECT * FROM escalations INDEXED BY escalations_leased WHERE state = 'leased' AND lease_expires_at_ms <= :now_ms
ORDER BY lease_expires_at_ms LIMIT :limit
"""
# What a backup knew as open: a person decides whether it leaves (again).
ESCALATIONS_RESTORED = """
UPDATE escalations SET state = 'awaiting_approval', reason = 'restored', allowed = 0, released = 0,
    lease = NULL, lease_expires_at_ms = NULL, deferred = 0
WHERE state IN ('awaiting_approval', 'pending', 'leased')
"""
ESCALATION_LEASED = "SELECT * FROM escalations WHERE state = 'leased' LIMIT :limit"

# --- attempts -------------------------------------------------------------------------

ATTEMPT_BEGIN = """
INSERT INTO attempts (escalation_id, lease, target, body_sha256, body_bytes, started_at_ms, policy, redactions)
VALUES (:escalation_id, :lease, :target, :body_sha256, :body_bytes, :now_ms, :policy, :redactions)
"""
ATTEMPT_OF_LEASE = "SELECT * FROM attempts WHERE lease = :lease AND finished_at_ms IS NULL"
ATTEMPT_BY_LEASE = "SELECT * FROM attempts WHERE lease = :lease"
ATTEMPT_RESERVE = """
UPDATE attempts SET reserved_tokens = :tokens, reserved_nanodollars = :nanodollars, day = :day, task = :task
WHERE lease = :lease
"""
ATTEMPT_FINISH = "UPDATE attempts SET finished_at_ms = :now_ms, outcome = :outcome, error = :error WHERE lease = :lease"
ATTEMPTS_OF = "SELECT * FROM attempts WHERE escalation_id = :id ORDER BY id"

# --- budgets --------------------------------------------------------------------------

SPENT_ADD = """
INSERT INTO spent (day, target, task, tokens, nanodollars) VALUES (:day, :target, :task, :tokens, :nanodollars)
ON CONFLICT (day, target, task) DO UPDATE SET tokens = tokens + excluded.tokens,
    nanodollars = nanodollars + excluded.nanodollars
"""
SPENT = """
SELECT ifnull(sum(tokens), 0) AS tokens, ifnull(sum(nanodollars), 0) AS nanodollars FROM spent
WHERE day BETWEEN :first_day AND :last_day AND (:target = '' OR target = :target) AND (:task = '' OR task = :task)
"""
SPENT_ALL = "SELECT day, target, task, tokens, nanodollars FROM spent"
# A restored backup forgets nothing of what was spent since.
SPENT_AT_LEAST = """
INSERT INTO spent (day, target, task, tokens, nanodollars) VALUES (:day, :target, :task, :tokens, :nanodollars)
ON CONFLICT (day, target, task) DO UPDATE SET tokens = max(tokens, excluded.tokens),
    nanodollars = max(nanodollars, excluded.nanodollars)
"""

# --- egress log -----------------------------------------------------------------------

EGRESS_LAST = "SELECT id, mac FROM egress_log ORDER BY id DESC LIMIT 1"
EGRESS_APPEND = """
INSERT INTO egress_log (id, at_ms, escalation_id, request_id, target, bytes, body_sha256, outcome, policy, redactions, mac)
VALUES (:id, :at_ms, :escalation_id, :request_id, :target, :bytes, :body_sha256, :outcome, :policy, :redactions, :mac)
"""
EGRESS_LIST = "SELECT * FROM egress_log WHERE at_ms >= :since_ms ORDER BY at_ms DESC, id DESC LIMIT :limit"
EGRESS_TOTALS = """
SELECT target, count(*) AS n_rows, sum(bytes) AS n_bytes FROM egress_log WHERE at_ms >= :since_ms GROUP BY target
"""
EGRESS_OF_ROW = "SELECT 1 FROM egress_log WHERE at_ms >= :since_ms AND escalation_id = :escalation_id LIMIT 1"
EGRESS_KNOWN = """
SELECT 1 FROM egress_log WHERE at_ms = :at_ms AND escalation_id = :escalation_id AND request_id = :request_id
    AND target = :target AND bytes = :body_bytes AND body_sha256 = :body_sha256 AND outcome = :outcome LIMIT 1
"""
EGRESS_FROM = "SELECT * FROM egress_log WHERE id > :after_id ORDER BY id LIMIT :limit"
EGRESS_HIGHEST = "SELECT seq FROM sqlite_sequence WHERE name = 'egress_log'"
CHAIN_KEY = "SELECT value FROM secrets WHERE name = 'egress_chain'"

# --- tasks ----------------------------------------------------------------------------

HEAD_PUT = """
INSERT INTO task_heads (task, created_at_ms, body) VALUES (:task, :now_ms, :body)
ON CONFLICT (task) DO UPDATE SET created_at_ms = excluded.created_at_ms, body = excluded.body
"""
HEADS = "SELECT body FROM task_heads ORDER BY task"
HEAD_DELETE = "DELETE FROM task_heads WHERE task = :task"

APPRAISER_PUT = """
INSERT INTO task_appraisers (task, created_at_ms, body) VALUES (:task, :now_ms, :body)
ON CONFLICT (task) DO UPDATE SET created_at_ms = excluded.created_at_ms, body = excluded.body
"""
APPRAISERS = "SELECT body FROM task_appraisers ORDER BY task"
APPRAISER_DELETE = "DELETE FROM task_appraisers WHERE task = :task"

# Of a task the one that has not ended holds; those before it stay, since answers name them.
CALIBRATION_END = "UPDATE calibrations SET ended_at_ms = :now_ms WHERE task = :task AND ended_at_ms IS NULL"
CALIBRATION_PUT = "INSERT INTO calibrations (id, task, created_at_ms, body) VALUES (:id, :task, :now_ms, :body)"
CALIBRATIONS = "SELECT body FROM calibrations WHERE ended_at_ms IS NULL ORDER BY number"
CALIBRATIONS_OF = """
SELECT body FROM calibrations WHERE task = :task AND broken_at_ms IS NULL ORDER BY number DESC LIMIT :most
"""
CALIBRATION_BROKEN = "UPDATE calibrations SET broken_at_ms = :now_ms WHERE id = :id AND broken_at_ms IS NULL"

EXAMPLES_PUT = """
INSERT INTO task_examples (task, use, created_at_ms, body) VALUES (:task, :use, :now_ms, :body)
ON CONFLICT (task, use) DO UPDATE SET created_at_ms = excluded.created_at_ms, body = excluded.body
"""
EXAMPLES = "SELECT body FROM task_examples WHERE task = :task AND use = :use"
EXAMPLES_DELETE = "DELETE FROM task_examples WHERE task = :task"
EXAMPLES_DROP = "DELETE FROM task_examples WHERE task = :task AND use = :use"

MEANS_PUT = """
INSERT INTO label_means (task, body) VALUES (:task, :body) ON CONFLICT (task) DO UPDATE SET body = excluded.body
"""
MEANS = "SELECT body FROM label_means ORDER BY task"
MEANS_DELETE = "DELETE FROM label_means WHERE task = :task"
