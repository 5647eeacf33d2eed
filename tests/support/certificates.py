"""Certificates for tests: an authority, and keys that it signed, made with the command openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

KEY_PASSWORD = "open sesame"


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files."""

    authority: Path
    certificate: Path
    """Names localhost and 127.0.0.1."""
    key: Path
    locked_key: Path
    """The same key under ``KEY_PASSWORD``."""
    stranger: Path
    """Another authority, which signed nothing."""


def make_certificates(folder: Path) -> Certificates:
    """Everything new, valid for a day."""
    made = Certificates(*(folder / name for name in ("ca.pem", "client.pem", "client.key", "locked.key", "stranger.pem")))
    folder.mkdir(parents=True, exist_ok=True)
    for authority in (made.authority, made.stranger):
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"),
            *("-subj", f"/CN={authority.stem}", "-keyout", f"{authority}.key", "-out", str(authority)),
        )
    request = folder / "client.csr"
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=gapstream"),
        *("-keyout", str(made.key), "-out", str(request)),
    )
    names = folder / "names.cnf"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(made.authority), "-CAkey", f"{made.authority}.key", "-CAcreateserial"),
        *("-days", "1", "-extfile", str(names), "-out", str(made.certificate)),
    )
    _openssl("pkcs8", "-topk8", "-in", str(made.key), "-out", str(made.locked_key), "-passout", f"pass:{KEY_PASSWORD}")
    return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
