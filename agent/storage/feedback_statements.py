"""The statements about feedback and monitors, by name."""

FEEDBACK_PUT = """
INSERT INTO feedback (id, request_id, task, origin, verdict, is_right, served, propensity, created_at_ms, body)
VALUES (:id, :request_id, :task, :origin, :verdict, :is_right, :served, :propensity, :now_ms, :body)
ON CONFLICT (request_id, origin) DO UPDATE SET id = excluded.id, task = excluded.task, verdict = excluded.verdict,
    is_right = excluded.is_right, served = excluded.served, propensity = excluded.propensity,
    created_at_ms = excluded.created_at_ms, body = excluded.body
"""
FEEDBACK_OF_TASK = "SELECT * FROM feedback WHERE task = :task AND id > :after_id ORDER BY id LIMIT :limit"
FEEDBACK_LIST = "SELECT * FROM feedback WHERE id > :after_id ORDER BY id LIMIT :limit"
FEEDBACK_OF_REQUEST = "SELECT * FROM feedback WHERE request_id = :id ORDER BY id"
FEEDBACK_DRAWN = """
SELECT 1 FROM feedback WHERE request_id = :id AND served = 1 AND propensity IS NOT NULL AND is_right IS NOT NULL LIMIT 1
"""
FEEDBACK_COUNTS = """
SELECT origin, verdict, count(*) AS n_rows, sum(is_right = 1) AS n_right, sum(is_right = 0) AS n_wrong
FROM feedback WHERE task IS :task GROUP BY origin, verdict ORDER BY origin, verdict
"""
FEEDBACK_DELETE = "DELETE FROM feedback WHERE task = :task"
MONITORS = "SELECT body FROM monitors ORDER BY task"
MONITOR_PUT = """
INSERT INTO monitors (task, body) VALUES (:task, :body) ON CONFLICT (task) DO UPDATE SET body = excluded.body
"""
MONITOR_DELETE = "DELETE FROM monitors WHERE task = :task"
