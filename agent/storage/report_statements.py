"""The statements of reports, by name. All walk a span of time by an index."""

REPORT_FACTS = """
SELECT r.id, r.kind, r.task, r.arm, r.model, r.state, r.action, r.reason, r.received_at_ms, r.settled_at_ms,
    r.answered_by, r.accepted_target, local.model AS local_model, local.input_tokens, local.output_tokens,
    local.tokens_estimated, late.model AS target_model, e.purpose, count(c.id) AS sends,
    count(c.id) - count(c.nanodollars) AS unknown_sends, ifnull(sum(c.nanodollars), 0) AS nanodollars,
    sum(c.nanodollars) FILTER (WHERE c.outcome = 'succeeded') AS answer_nanodollars
FROM requests AS r
LEFT JOIN results AS local ON local.request_id = r.id AND local.source = 'local'
LEFT JOIN results AS late ON late.request_id = r.id AND late.source = 'target'
LEFT JOIN escalations AS e ON e.request_id = r.id
LEFT JOIN costs AS c ON c.request_id = r.id
WHERE r.id > :after_id AND r.id < :until_id
GROUP BY r.id ORDER BY r.id LIMIT :limit
"""
REPORT_JUDGED = """
SELECT f.request_id, f.origin, f.verdict, f.is_right, f.served, f.propensity
FROM requests AS r JOIN feedback AS f ON f.request_id = r.id
WHERE r.id > :after_id AND r.id < :until_id
"""
REPORT_SPENT = """
SELECT target, model, price, count(*) AS sends, count(*) - count(nanodollars) AS unknown,
    ifnull(sum(input_tokens), 0) AS input_tokens, ifnull(sum(output_tokens), 0) AS output_tokens,
    ifnull(sum(nanodollars), 0) AS nanodollars
FROM costs WHERE at_ms >= :since_ms AND at_ms < :until_ms
GROUP BY target, model, price ORDER BY target, model, price
"""
REPORT_LABELS = """
SELECT task, label, sum(answers) AS answers FROM label_counts WHERE day >= :first_day AND day <= :last_day
GROUP BY task, label ORDER BY task, answers DESC, label
"""
