"""Which of librdkafka's properties the section ``kafka`` may hold, and what is wrong with a given set of them.

The program speaks to Kafka through three clients: confluent-kafka (librdkafka), aiokafka under Faust, and a log reader of
its own. A property stands here when all three honour it in the same way; any other is a fault, never ignored. Meanings and
ranges: librdkafka, CONFIGURATION.md. Only the standard library is imported here; :mod:`stream_app.kafka.clients` makes the
clients' settings.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

MASK = "***"
DEFAULT_PORT = 9092
SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
PASSWORD_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
MECHANISMS = (*PASSWORD_MECHANISMS, "GSSAPI", "OAUTHBEARER")
SOCKET_TIMEOUT_MS = (1_000, 300_000)
"""librdkafka takes 10 ms and more; an answer that has to be replicated first takes longer than that."""
_SECRET_NAME = re.compile(r"password|secret|\.pem$|jaas|token$", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Za-z:.%]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?")
_TRUE, _FALSE = ("true", "t", "1"), ("false", "f", "0")
Problem = tuple[str, str]
"""Name of a property, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Property:
    """One property that every client honours."""

    meaning: str
    only: str = ""
    """Where it is used: ``SSL``, ``SASL``, or a mechanism; empty: everywhere."""


PROPERTIES: Mapping[str, Property] = {
    "bootstrap.servers": Property("brokers to ask first: host:port, host:port"),
    "client.id": Property("name of the program in the broker's logs and quotas"),
    "socket.timeout.ms": Property("a request that is not answered for so long has failed"),
    "security.protocol": Property("PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
    "ssl.ca.location": Property("file or folder with the certificates to trust, in PEM; else those of the system", "SSL"),
    "ssl.ca.pem": Property("the same as text", "SSL"),
    "ssl.certificate.location": Property("file with the client's certificate, in PEM", "SSL"),
    "ssl.key.location": Property("file with the client's private key, in PEM", "SSL"),
    "ssl.key.password": Property("password of that key", "SSL"),
    "ssl.endpoint.identification.algorithm": Property("https: the certificate must name the broker; none", "SSL"),
    "enable.ssl.certificate.verification": Property("false: any certificate is taken", "SSL"),
    "sasl.mechanism": Property("PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI or OAUTHBEARER", "SASL"),
    "sasl.mechanisms": Property("the same", "SASL"),
    "sasl.username": Property("for PLAIN and SCRAM", "PASSWORD"),
    "sasl.password": Property("for PLAIN and SCRAM", "PASSWORD"),
    "sasl.kerberos.service.name": Property("for GSSAPI: the brokers' principal without the host, else kafka", "GSSAPI"),
    "sasl.oauthbearer.method": Property("for OAUTHBEARER: oidc", "OAUTHBEARER"),
    "sasl.oauthbearer.client.id": Property("for OAUTHBEARER", "OAUTHBEARER"),
    "sasl.oauthbearer.client.secret": Property("for OAUTHBEARER", "OAUTHBEARER"),
    "sasl.oauthbearer.token.endpoint.url": Property("for OAUTHBEARER: where tokens are had", "OAUTHBEARER"),
    "sasl.oauthbearer.scope": Property("for OAUTHBEARER", "OAUTHBEARER"),
    "sasl.oauthbearer.extensions": Property("for OAUTHBEARER: name=value,name=value", "OAUTHBEARER"),
}
"""All that the section may hold."""

_TICKETS = "aiokafka takes Kerberos tickets from the credential cache only: leave it out and keep a ticket there with kinit"
_PEM_FILES = "not every client takes it: put the certificate and the key into PEM files for ssl.certificate.location and ssl.key.location"
HINTS: Mapping[str, str] = {
    "metadata.broker.list": "write it as bootstrap.servers",
    "group.id": "the group is named by app.id",
    "group.instance.id": "write it as app.instance",
    "session.timeout.ms": "write it as app.session_timeout",
    "isolation.level": "write it as isolation of a topic",
    "check.crcs": "write it as check_crcs of a topic",
    "transactional.id": "the program names its producers itself: leave it out",
    "auto.offset.reset": "where reading begins is kept in the program's state: leave it out",
    "enable.auto.commit": "what was read is kept in the program's state: leave it out",
    "ssl.certificate.pem": _PEM_FILES,
    "ssl.key.pem": _PEM_FILES,
    "ssl.keystore.location": _PEM_FILES,
    "ssl.keystore.password": _PEM_FILES,
    "sasl.kerberos.principal": _TICKETS,
    "sasl.kerberos.keytab": _TICKETS,
    "sasl.kerberos.kinit.cmd": _TICKETS,
    "sasl.kerberos.min.time.before.relogin": _TICKETS,
}
"""What to do instead of some that can't be honoured."""
_MSK_IAM = "IAM of Amazon MSK needs the extra gapstream[msk], which this version does not have: use SCRAM-SHA-512 or SSL with MSK"


def mask_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """The properties with secrets left out."""
    return {name: MASK if _SECRET_NAME.search(name) and value else value for name, value in properties.items()}


def security_protocol(properties: Mapping[str, str]) -> str:
    """In capitals; PLAINTEXT where none is given."""
    return properties.get("security.protocol", "PLAINTEXT").upper()


def sasl_mechanism(properties: Mapping[str, str]) -> str | None:
    """In capitals, under either name; None where none is given."""
    given = properties.get("sasl.mechanism", properties.get("sasl.mechanisms"))
    return None if given is None else given.upper()


def parse_servers(text: str) -> tuple[tuple[str, int], ...]:
    """Host and port of each entry of ``bootstrap.servers``.

    Raises:
        ValueError: an entry is not ``host:port``.
    """
    found = []
    for part in text.split(","):
        match = _ADDRESS.fullmatch(part.strip())
        port = int(match["port"] or DEFAULT_PORT) if match else 0
        if match is None or not 0 < port < 65_536:
            msg = f"{part.strip()!r} is not host:port"
            raise ValueError(msg)
        found.append((match["v6"] or match["host"], port))
    return tuple(found)


def parse_flag(text: str) -> bool:
    """A boolean as librdkafka writes it.

    Raises:
        ValueError: it is none.
    """
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    msg = "must be true or false"
    raise ValueError(msg)


def parse_extensions(text: str) -> dict[str, str]:
    """``name=value`` pairs of ``sasl.oauthbearer.extensions``.

    Raises:
        ValueError: an entry has no ``=``, or no name.
    """
    pairs = [part.strip().partition("=") for part in text.split(",")]
    if any(not name or not equals for name, equals, _ in pairs):
        msg = "must be name=value,name=value"
        raise ValueError(msg)
    return {name: value for name, _, value in pairs}


def make_ssl_context(properties: Mapping[str, str]) -> ssl.SSLContext:
    """The TLS settings for Python's clients; librdkafka has its own from the same properties.

    Raises:
        OSError: a file can't be read.
        ssl.SSLError: it holds something else, or the key's password is wrong.
    """
    location = properties.get("ssl.ca.location")
    folder = location is not None and os.path.isdir(location)
    context = ssl.create_default_context(
        cafile=None if folder else location, capath=location if folder else None, cadata=properties.get("ssl.ca.pem")
    )
    verify = parse_flag(properties.get("enable.ssl.certificate.verification", "true"))
    named = properties.get("ssl.endpoint.identification.algorithm", "https").lower() == "https"
    context.check_hostname = verify and named
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    certificate = properties.get("ssl.certificate.location")
    if certificate is not None:
        # an empty password keeps OpenSSL from asking for one on the terminal
        context.load_cert_chain(certificate, properties.get("ssl.key.location"), properties.get("ssl.key.password", ""))
    return context


def check_properties(properties: Mapping[str, str]) -> list[Problem]:
    """Everything that is wrong with the properties of one cluster; empty: every client can be made from them."""
    found = list(_unknown(properties))
    empty = [name for name, value in properties.items() if name in PROPERTIES and not value.strip()]
    found += [(name, "is empty") for name in empty]
    usable = {name: value for name, value in properties.items() if name in PROPERTIES and name not in empty}
    if "bootstrap.servers" not in properties:
        found.append(("bootstrap.servers", "is required: host:port of one broker or more"))
    found += _values(usable)
    wrong = {name for name, _ in found}
    if "security.protocol" not in wrong and not wrong & {"sasl.mechanism", "sasl.mechanisms"}:
        found += _sasl(usable, wrong)
    if "security.protocol" not in wrong and security_protocol(usable).endswith("SSL"):
        found += _tls(usable, wrong)
    return found


def unused_properties(properties: Mapping[str, str]) -> list[Problem]:
    """Properties that no client looks at because of ``security.protocol`` or the mechanism: worth a warning."""
    protocol, mechanism = security_protocol(properties), sasl_mechanism(properties)
    sasl = protocol.startswith("SASL_")
    active = {"", "SSL" if protocol.endswith("SSL") else "", "SASL" if sasl else "", (mechanism or "") if sasl else ""}
    if sasl and mechanism in PASSWORD_MECHANISMS:
        active.add("PASSWORD")
    return [
        (name, f"is not used with security.protocol {protocol}" + (f" and sasl.mechanism {mechanism}" if sasl and mechanism else ""))
        for name in properties
        if name in PROPERTIES and PROPERTIES[name].only not in active
    ]


def _unknown(properties: Mapping[str, str]) -> Iterator[Problem]:
    for name in properties:
        if name in PROPERTIES:
            continue
        hint = HINTS.get(name)
        if hint is None:
            near = difflib.get_close_matches(name, PROPERTIES, n=1, cutoff=0.85)
            hint = f"is no property that every client of the program honours{f': is {near[0]} meant?' if near else ''}"
        yield name, hint


def _values(usable: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in usable.items():
        check = _CHECKS.get(name)
        complaint = check(value) if check is not None else None
        if complaint is not None:
            yield name, complaint


def _attempt(parse: Callable[[str], object]) -> Callable[[str], str | None]:
    def check(text: str) -> str | None:
        try:
            parse(text)
        except ValueError as error:
            return str(error)
        return None

    return check


def _one_of(allowed: tuple[str, ...]) -> Callable[[str], str | None]:
    def check(text: str) -> str | None:
        return None if text.upper() in (one.upper() for one in allowed) else f"{text!r} is none of {', '.join(allowed)}"

    return check


def _check_mechanism(text: str) -> str | None:
    return _MSK_IAM if text.upper() == "AWS_MSK_IAM" else _one_of(MECHANISMS)(text)


def _check_method(text: str) -> str | None:
    if text.lower() == "aws_msk_iam":
        return _MSK_IAM
    return None if text.lower() == "oidc" else f"{text!r} can't be used: write oidc"


def _check_timeout(text: str) -> str | None:
    low, high = SOCKET_TIMEOUT_MS
    return None if text.isdecimal() and low <= int(text) <= high else f"must be a whole number of milliseconds, {low} to {high}"


def _check_url(text: str) -> str | None:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    return None if usable else "must be an address that begins with https:// or http://"


def _check_file(path: str) -> str | None:
    if os.path.isdir(path):
        return f"{path} is a folder, a file is needed"
    return None if os.access(path, os.R_OK) else f"{path} can't be read"


def _check_file_or_folder(path: str) -> str | None:
    return None if os.access(path, os.R_OK) else f"{path} can't be read"


_CHECKS: Mapping[str, Callable[[str], str | None]] = {
    "bootstrap.servers": _attempt(parse_servers),
    "socket.timeout.ms": _check_timeout,
    "security.protocol": _one_of(SECURITY_PROTOCOLS),
    "ssl.ca.location": _check_file_or_folder,
    "ssl.certificate.location": _check_file,
    "ssl.key.location": _check_file,
    "ssl.endpoint.identification.algorithm": _one_of(("https", "none")),
    "enable.ssl.certificate.verification": _attempt(parse_flag),
    "sasl.mechanism": _check_mechanism,
    "sasl.mechanisms": _check_mechanism,
    "sasl.oauthbearer.method": _check_method,
    "sasl.oauthbearer.token.endpoint.url": _check_url,
    "sasl.oauthbearer.extensions": _attempt(parse_extensions),
}


def _sasl(usable: Mapping[str, str], wrong: set[str]) -> Iterator[Problem]:
    both = [usable[name].upper() for name in ("sasl.mechanism", "sasl.mechanisms") if name in usable]
    if len(both) == 2 and both[0] != both[1]:
        yield "sasl.mechanisms", "says something else than sasl.mechanism: leave one of them out"
        return
    protocol, mechanism = security_protocol(usable), sasl_mechanism(usable)
    if not protocol.startswith("SASL_"):
        return
    if mechanism is None:
        yield "sasl.mechanism", f"is required with security.protocol {protocol}: {', '.join(MECHANISMS)}"
        return
    for name in _REQUIRED.get(mechanism, ()):
        if name not in usable and name not in wrong:
            yield name, f"is required with sasl.mechanism {mechanism}"
    if mechanism == "GSSAPI":
        yield from _kerberos()


_OIDC = ("sasl.oauthbearer.client.id", "sasl.oauthbearer.client.secret", "sasl.oauthbearer.token.endpoint.url")
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(PASSWORD_MECHANISMS, ("sasl.username", "sasl.password")),
    "OAUTHBEARER": ("sasl.oauthbearer.method", *_OIDC),
}


def _kerberos() -> Iterator[Problem]:
    if importlib.util.find_spec("gssapi") is None:
        yield "sasl.mechanism", "GSSAPI needs the Python package gssapi, which is not installed: pip install gssapi"
    if not librdkafka_has("sasl_gssapi"):
        yield (
            "sasl.mechanism",
            "GSSAPI needs a confluent-kafka built against a librdkafka with libsasl2, which this one is not: "
            "install librdkafka from your system and pip install --no-binary confluent-kafka confluent-kafka",
        )


def librdkafka_has(feature: str) -> bool:
    """Whether this build of librdkafka has one of its ``builtin.features``; the wheels of confluent-kafka lack ``sasl_gssapi``."""
    from confluent_kafka import KafkaException, Producer

    try:
        Producer({"builtin.features": feature, "log_level": 0})
    except KafkaException:
        return False
    return True


def _tls(usable: Mapping[str, str], wrong: set[str]) -> Iterator[Problem]:
    pair = ("ssl.certificate.location", "ssl.key.location")
    for name, other in (pair, pair[::-1]):
        if name in usable and other not in usable and other not in wrong:
            yield other, f"is required with {name}"
    if "ssl.ca.location" in usable and "ssl.ca.pem" in usable:
        yield "ssl.ca.pem", "stands beside ssl.ca.location: leave one of them out"
        return
    if wrong & {name for name, one in PROPERTIES.items() if one.only == "SSL"} or (pair[0] in usable) != (pair[1] in usable):
        return  # the files are tried only where nothing is wrong with what names them
    for authority in ("ssl.ca.location", "ssl.ca.pem"):
        if authority in usable:
            try:
                make_ssl_context({authority: usable[authority]})
            except OSError as error:  # ssl.SSLError is one
                yield authority, f"holds no certificates in PEM ({_reason(error)})"
                return
    if pair[0] in usable:
        try:
            make_ssl_context(usable)
        except OSError as error:
            yield "ssl.key.location", f"can't be used with ssl.certificate.location and ssl.key.password ({_reason(error)})"


def _reason(error: OSError) -> str:
    """OpenSSL's word for it: its message says nothing else that helps."""
    return getattr(error, "reason", None) or error.strerror or str(error)
