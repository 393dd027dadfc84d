"""Tables and statements of uploaded files and of batches. Texts in them are under the database's key like all others."""

FILES = """
    id TEXT PRIMARY KEY,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    ready INTEGER NOT NULL CHECK (ready IN (0, 1)),
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER,
    idempotency_key TEXT UNIQUE,
    sha256 TEXT NOT NULL,
    batch_id TEXT
"""
FILE_CHUNKS = """
    file_id TEXT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (file_id, number)
"""
BATCHES = """
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL CHECK (status IN
        ('validating', 'in_progress', 'cancelling', 'completed', 'failed', 'expired', 'cancelled')),
    idempotency_key TEXT UNIQUE,
    body_sha256 TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    began_at_ms INTEGER,
    cancelling_at_ms INTEGER,
    ended_at_ms INTEGER,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    output_file_id TEXT,
    error_file_id TEXT,
    body BLOB NOT NULL,
    errors BLOB,
    CHECK ((status IN ('completed', 'failed', 'expired', 'cancelled')) = (ended_at_ms IS NOT NULL))
"""
# ``status`` is that of HTTP, 0 for a line that was never asked; an answer is written once.
LINES = """
    batch_id TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    request_id TEXT,
    body BLOB,
    status INTEGER,
    answer BLOB,
    PRIMARY KEY (batch_id, number),
    CHECK ((status IS NULL) = (answer IS NULL)),
    CHECK (status IS NOT NULL OR body IS NOT NULL)
"""
INDEXES = (
    "CREATE INDEX files_to_expire ON files (expires_at_ms) WHERE expires_at_ms IS NOT NULL",
    "CREATE INDEX batches_open ON batches (id) WHERE ended_at_ms IS NULL",
    "CREATE INDEX batches_to_drop ON batches (ended_at_ms) WHERE ended_at_ms IS NOT NULL",
    "CREATE INDEX lines_new ON batch_lines (batch_id, number) WHERE status IS NULL AND request_id IS NULL",
    "CREATE INDEX lines_waiting ON batch_lines (batch_id, number) WHERE status IS NULL AND request_id IS NOT NULL",
    "CREATE INDEX lines_by_request ON batch_lines (request_id) WHERE request_id IS NOT NULL",
)

FILE_BEGIN = """
INSERT INTO files (id, purpose, filename, bytes, ready, created_at_ms, sha256, batch_id)
VALUES (:id, '', '', 0, 0, :now_ms, '', NULL)
"""
FILE_CHUNK = "INSERT INTO file_chunks (file_id, number, body) VALUES (:id, :number, :body)"
FILE_GROW = "UPDATE files SET bytes = bytes + :bytes WHERE id = :id"
FILES_TOTAL = "SELECT ifnull(sum(bytes), 0) AS n_bytes FROM files"
FILE_OF_KEY = "SELECT * FROM files WHERE idempotency_key = :key"
FILE_READY = """
UPDATE files SET ready = 1, purpose = :purpose, filename = :filename, sha256 = :sha256, idempotency_key = :key,
    expires_at_ms = :expires_at_ms
WHERE id = :id
"""
FILE_OUTPUT = """
INSERT INTO files (id, purpose, filename, bytes, ready, created_at_ms, expires_at_ms, sha256, batch_id)
SELECT :id, 'batch_output', :filename, ifnull(sum(length(answer) + 1), 0), 1, :now_ms, :expires_at_ms, '', :batch_id
FROM batch_lines WHERE batch_id = :batch_id AND (status BETWEEN 200 AND 299) = :good AND answer <> x''
"""
FILE_GET = "SELECT * FROM files WHERE id = :id AND ready = 1"
FILE_LIST = """
SELECT * FROM files WHERE ready = 1 AND (:purpose IS NULL OR purpose = :purpose) AND id > :after ORDER BY id LIMIT :limit
"""
FILE_LIST_NEWEST = """
SELECT * FROM files WHERE ready = 1 AND (:purpose IS NULL OR purpose = :purpose) AND id < :after
ORDER BY id DESC LIMIT :limit
"""
FILE_READ = "SELECT body FROM file_chunks WHERE file_id = :id AND number = :number"
FILE_DELETE = "DELETE FROM files WHERE id = :id"
FILE_HIDE = "UPDATE files SET ready = 0, idempotency_key = NULL WHERE id = :id"
FILE_DROP_SOME = """
DELETE FROM file_chunks WHERE file_id = :id
    AND number IN (SELECT number FROM file_chunks WHERE file_id = :id ORDER BY number LIMIT :limit)
"""
FILES_UNREADY = "SELECT id FROM files WHERE ready = 0"
FILES_EXPIRED = "SELECT id, batch_id FROM files WHERE expires_at_ms <= :now_ms ORDER BY expires_at_ms LIMIT :limit"
FILE_EXPIRES = "UPDATE files SET expires_at_ms = :now_ms WHERE id = :id"
OUTPUT_READ = """
SELECT number, answer FROM batch_lines
WHERE batch_id = :batch_id AND number > :after AND (status BETWEEN 200 AND 299) = :good ORDER BY number LIMIT :limit
"""
# Of an output file the answers go; that a line was answered stays.
OUTPUT_LAST = """
SELECT max(number) AS last FROM (
    SELECT number FROM batch_lines WHERE batch_id = :batch_id AND number > :after ORDER BY number LIMIT :limit
)
"""
OUTPUT_FORGET = """
UPDATE batch_lines SET answer = x'' WHERE batch_id = :batch_id AND number > :after AND number <= :last
    AND (status BETWEEN 200 AND 299) = :good
"""

BATCH_PUT = """
INSERT INTO batches (id, status, idempotency_key, body_sha256, created_at_ms, expires_at_ms, body)
VALUES (:id, 'validating', :key, :sha256, :now_ms, :expires_at_ms, :body)
"""
BATCH_GET = "SELECT * FROM batches WHERE id = :id"
BATCH_OF_KEY = "SELECT * FROM batches WHERE idempotency_key = :key"
BATCH_LIST = "SELECT * FROM batches WHERE id < :after ORDER BY id DESC LIMIT :limit"
BATCHES_OPEN = "SELECT * FROM batches WHERE ended_at_ms IS NULL ORDER BY id"
BATCHES_USING = "SELECT body FROM batches WHERE ended_at_ms IS NULL"
BATCH_BEGIN = """
UPDATE batches SET status = 'in_progress', total = :total, began_at_ms = :now_ms WHERE id = :id AND status = 'validating'
"""
BATCH_CANCEL = """
UPDATE batches SET status = 'cancelling', cancelling_at_ms = :now_ms
WHERE id = :id AND status IN ('validating', 'in_progress')
"""
BATCH_END = """
UPDATE batches SET status = :status, ended_at_ms = :now_ms, errors = :errors, output_file_id = :output,
    error_file_id = :error
WHERE id = :id AND ended_at_ms IS NULL
"""
BATCHES_TO_DROP = "SELECT id FROM batches WHERE ended_at_ms <= :before_ms"
BATCH_DELETE = "DELETE FROM batches WHERE id = :id"
# What a backup knew as open may have been answered since: its texts would leave a second time.
BATCHES_RESTORED = """
UPDATE batches SET status = 'failed', ended_at_ms = :now_ms, errors = :errors WHERE ended_at_ms IS NULL
"""

LINE_PUT = "INSERT INTO batch_lines (batch_id, number, custom_id, body) VALUES (:id, :number, :custom_id, :body)"
LINES_DROP_SOME = """
DELETE FROM batch_lines WHERE batch_id = :id
    AND number IN (SELECT number FROM batch_lines WHERE batch_id = :id ORDER BY number LIMIT :limit)
"""
LINES_NEW = """
SELECT number, custom_id, request_id, body FROM batch_lines INDEXED BY lines_new
WHERE batch_id = :id AND status IS NULL AND request_id IS NULL AND number > :after ORDER BY number LIMIT :limit
"""
LINES_WAITING = """
SELECT number, custom_id, request_id, body FROM batch_lines INDEXED BY lines_waiting
WHERE batch_id = :id AND status IS NULL AND request_id IS NOT NULL AND number > :after ORDER BY number LIMIT :limit
"""
# Of those that wait, the ones whose requests have come to an end.
LINES_JOINED = """
SELECT number, custom_id, request_id, body FROM batch_lines INDEXED BY lines_waiting
WHERE batch_id = :id AND status IS NULL AND request_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM requests WHERE requests.id = batch_lines.request_id AND requests.state IN ('running', 'queued')
) ORDER BY number LIMIT :limit
"""
LINE_WAITS = """
UPDATE batch_lines SET request_id = :request_id WHERE batch_id = :id AND number = :number AND status IS NULL
"""
LINE_ANSWER = """
UPDATE batch_lines SET status = :status, answer = :answer, request_id = NULL, body = NULL
WHERE batch_id = :id AND number = :number AND status IS NULL
"""
BATCH_COUNT = "UPDATE batches SET completed = completed + :good, failed = failed + 1 - :good WHERE id = :id"
