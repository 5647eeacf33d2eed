"""Why Kafka could not be asked, split by who must act.

::

    KafkaError
     +-- UnreachableError   the network or the broker: try again
     +-- RefusedError       TLS, SASL or ACLs said no: somebody must change settings
     +-- UnsupportedError   the broker is too old: somebody must upgrade it
     +-- MalformedError     an answer that is not what the protocol says: a proxy, not Kafka, or a defect here
     +-- BrokerError        the broker answered with an error code

Every message is one sentence that says what to do.
"""

from __future__ import annotations


class KafkaError(Exception):
    """Kafka could not be asked; the subclasses say why."""


class UnreachableError(KafkaError):
    """No connection, a lost one, or no answer in time; safe to try again."""


class RefusedError(KafkaError):
    """TLS, SASL or an ACL refused us; trying again changes nothing until settings change."""


class UnsupportedError(KafkaError):
    """The broker does not speak a version that we need."""


class MalformedError(KafkaError):
    """An answer that does not follow the protocol."""


class BrokerError(KafkaError):
    """The broker answered with an error code (see ``protocol.ErrorCode``)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
