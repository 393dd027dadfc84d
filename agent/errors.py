"""Every error that a user or a caller can meet.

OutriderError
 |-- ConfigError                 422, exit 78
 |-- RequestError                4xx: the caller's input
 |    |-- InvalidRequest         400
 |    |-- ContentRefused         400: by the moderation of the configuration
 |    |-- ModelNotFound          404
 |    |-- TaskNotFound           404
 |    |-- BadExamples            422: a file of examples, its lines named
 |    |-- NotCertified           422: too few examples, or a model too weak, for a promise
 |    |-- ContextOverflow        400 context_length_exceeded
 |    |-- PayloadTooLarge        413
 |    |-- UnsupportedMediaType   415
 |    |-- HeadersTooLarge        431
 |    |-- Unauthorized           401
 |    |-- Forbidden              403
 |    |-- NotFound               404
 |    |-- MethodNotAllowed       405
 |    |-- BodyTimeout            408
 |    |-- BodyGone               410
 |    |-- CannotRedact           409
 |    |    |-- CannotRedactNow   409: what finds names cannot be asked at the moment
 |    |-- IdempotencyMismatch    422
 |    |-- StillRunning           409
 |    |-- WrongState             409
 |    |-- TooManyHops            508
 |-- Busy                        429
 |-- DeadlineExceeded            504
 |-- EngineFailed                503
 |    |-- ModelQuarantined       503
 |    |-- AnswerCut              the last event of a stream
 |-- QueueFull, FilesFull        507
 |-- Unresolved                  502: nobody answered, here or at the target
 |-- ShuttingDown                503
 |-- StorageError                exit 74, 507 or 503
 |    |-- DiskFull               507
 |    |-- WrongKey, ForeignDatabase, NewerSchema, SqliteTooOld, StorageCorrupt
 |    |-- KeyProblem
 |    |-- LeaseLost              a settle came too late; nothing was changed
 |-- AlreadyRunning              exit 75
 |-- AddressInUse                exit 75
 |-- DaemonUnreachable           exit 69
 |-- SourceUnreachable           exit 69
 |-- ModelRejected               a model file that must not be loaded

Each class has a stable ``code`` (in the API and in ``--json``), an HTTP status, an exit
code, and says whether the same call can help later (``retryable``). ``str(error)`` is one
line: what, why, what to do.
"""

from __future__ import annotations


class OutriderError(Exception):
    """Base of all. ``param`` names the input at fault, where there is one."""

    code = "internal_error"
    status = 500
    type = "server_error"
    exit_code = 70
    retryable = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ConfigError(OutriderError):
    """The configuration does not hold."""

    code = "invalid_config"
    status = 422  # over HTTP: a reload, or a target named in a call
    type = "invalid_request_error"
    exit_code = 78


class RequestError(OutriderError):
    """The caller's input is at fault."""

    code = "invalid_request"
    status = 400
    type = "invalid_request_error"
    exit_code = 2


class InvalidRequest(RequestError):
    """A parameter is unknown, missing, out of range or of the wrong type."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        if code is not None:
            self.code = code


class ModelNotFound(RequestError):
    """No model of that name is installed; there is never a substitute."""

    code = "model_not_found"
    status = 404


class TaskNotFound(RequestError):
    """No task of that name is configured."""

    code = "task_not_found"
    status = 404


class BadExamples(RequestError):
    """Examples that cannot teach or certify; the message names their lines."""

    code = "bad_examples"
    status = 422
    exit_code = 65


class NotCertified(RequestError):
    """The examples do not carry the promise that was asked for."""

    code = "not_certified"
    status = 422
    exit_code = 65


class ContextOverflow(RequestError):
    """Prompt and answer do not fit the context, and no target may take the request."""

    code = "context_length_exceeded"


class PayloadTooLarge(RequestError):
    """The body is above the limit."""

    code = "body_too_large"
    status = 413


class HeadersTooLarge(RequestError):
    """Address and headers are above the limit."""

    code = "headers_too_large"
    status = 431


class UnsupportedMediaType(RequestError):
    """POST bodies must be application/json."""

    code = "unsupported_media_type"
    status = 415


class Unauthorized(RequestError):
    """No token, or a wrong one."""

    code = "invalid_api_key"
    status = 401
    type = "authentication_error"


class Forbidden(RequestError):
    """Host or Origin is not allowed, or the token has not this right."""

    code = "forbidden"
    status = 403
    type = "permission_error"


class NotFound(RequestError):
    """No such thing under this id."""

    code = "not_found"
    status = 404


class MethodNotAllowed(RequestError):
    """The path is known, but not with this method."""

    code = "method_not_allowed"
    status = 405


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    code = "body_timeout"
    status = 408


class BodyGone(RequestError):
    """The stored answer's retention has passed."""

    code = "body_gone"
    status = 410


class CannotRedact(RequestError):
    """The text must not leave, since it cannot be pseudonymised. The message says why, and never quotes it."""

    code = "cannot_redact"
    status = 409


class IdempotencyMismatch(RequestError):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_key_reused"
    status = 422


class StillRunning(RequestError):
    """The request of this Idempotency-Key is not finished."""

    code = "still_running"
    status = 409
    retryable = True


class WrongState(RequestError):
    """The row's state does not admit this."""

    code = "wrong_state"
    status = 409


class TooManyHops(RequestError):
    """The request has come through too many Outriders: a loop."""

    code = "too_many_hops"
    status = 508


class Busy(OutriderError):
    """The waiting line is full."""

    code = "busy"
    status = 429
    type = "rate_limit_error"
    exit_code = 75
    retryable = True
    retry_after_s = 1


class DeadlineExceeded(OutriderError):
    """The deadline passed before the answer was whole."""

    code = "deadline_exceeded"
    status = 504
    exit_code = 75
    retryable = True


class EngineFailed(OutriderError):
    """The worker died or could not start."""

    code = "engine_failed"
    status = 503
    exit_code = 70
    retryable = True


class AnswerCut(EngineFailed):
    """The end of a stream whose text is not the whole answer; its request waits in the queue."""

    code = "answer_cut"


class ModelQuarantined(EngineFailed):
    """The model crashed its worker too often."""

    code = "model_quarantined"
    retryable = False


class QueueFull(OutriderError):
    """The outbox is at its ceiling (rows, bytes)."""

    code = "queue_full"
    status = 507
    exit_code = 75
    retryable = True


class Unresolved(OutriderError):
    """There is no local answer, and the request's row ended without one from a target."""

    code = "unresolved"
    status = 502
    exit_code = 69


class ShuttingDown(OutriderError):
    """The daemon stops; what was accepted stays in the queue."""

    code = "shutting_down"
    status = 503
    exit_code = 75
    retryable = True


class StorageError(OutriderError):
    """The database cannot be used."""

    code = "storage_error"
    status = 503
    exit_code = 74


class DiskFull(StorageError):
    """No space is left; nothing was acknowledged that is not on disk."""

    code = "disk_full"
    status = 507
    retryable = True


class WrongKey(StorageError):
    """The key does not open this database."""

    code = "wrong_key"


class ForeignDatabase(StorageError):
    """The file is a database, but not one of Outrider."""

    code = "foreign_database"


class NewerSchema(StorageError):
    """The database was written by a newer release."""

    code = "newer_schema"


class SqliteTooOld(StorageError):
    """SQLite older than 3.51.3 can corrupt a WAL database."""

    code = "sqlite_too_old"


class StorageCorrupt(StorageError):
    """SQLite reports damage."""

    code = "storage_corrupt"


class KeyProblem(StorageError):
    """The key is missing, readable by others, or malformed."""

    code = "key_problem"


class LeaseLost(StorageError):
    """The row is no longer held under this lease; the settle changed nothing."""

    code = "lease_lost"


class AlreadyRunning(OutriderError):
    """Another instance owns the data directory."""

    code = "already_running"
    exit_code = 75


class AddressInUse(OutriderError):
    """The address to listen on is taken or not ours."""

    code = "address_in_use"
    exit_code = 75


class SourceUnreachable(OutriderError):
    """Where a model comes from cannot be reached, or the network is switched off."""

    code = "source_unreachable"
    status = 502
    exit_code = 69
    retryable = True


class DaemonUnreachable(OutriderError):
    """The daemon does not answer on its address."""

    code = "daemon_unreachable"
    status = 503
    exit_code = 69
    retryable = True


class ModelRejected(OutriderError):
    """A model file that must not reach the native loader."""

    code = "model_rejected"
    status = 422
    exit_code = 65
