"""The one question that is asked of a starting broker, in Kafka's own protocol: who is in your cluster?"""

from __future__ import annotations

import socket
import struct

_METADATA = 3
_VERSION = 5
"""Last version whose answer begins with plain fields that are easy to read; every broker since 1.0 has it."""


class NotReadyError(Exception):
    """Nobody listens there, or what listens does not answer yet."""


def brokers_known_to(host: str, port: int, timeout: float) -> set[int]:
    """Node ids of the live brokers in the metadata of the broker at ``host:port``.

    Request and answer as in the message definitions MetadataRequest.json and MetadataResponse.json of Kafka, version 5.
    Raises NotReadyError when there is no complete answer within ``timeout`` seconds (per step).
    """
    no_topics, no_creation = struct.pack(">i", 0), b"\0"
    body = struct.pack(">hhih", _METADATA, _VERSION, 1, -1) + no_topics + no_creation
    try:
        with socket.create_connection((host, port), timeout) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            (size,) = struct.unpack(">i", _read(connection, 4))
            answer = _read(connection, size)
    except OSError as error:
        raise NotReadyError(str(error)) from error
    _correlation, _throttle, count = struct.unpack_from(">iii", answer)
    position, nodes = 12, set[int]()
    for _ in range(count):
        node, host_length = struct.unpack_from(">ih", answer, position)
        position += 6 + host_length + 4
        (rack_length,) = struct.unpack_from(">h", answer, position)
        position += 2 + max(0, rack_length)
        nodes.add(node)
    return nodes


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("closed before the answer was complete")
        data += part
    return data
