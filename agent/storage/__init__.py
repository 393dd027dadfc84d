"""The encrypted database: requests, results, the outbox and the log of what left."""

from agent.storage.egress_log import EgressLog
from agent.storage.journal import Journal
from agent.storage.outbox import Outbox
from agent.storage.storage import Storage, open_storage

__all__ = ["EgressLog", "Journal", "Outbox", "Storage", "open_storage"]
