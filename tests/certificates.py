"""Certificates for tests, made with openssl as an operator would."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificate(directory: Path, name: str = "server", rsa: bool = False) -> Path:
    """A new self-signed one for localhost, NAME.pem, with its key beside it, NAME.key."""
    directory.mkdir(exist_ok=True)
    cert = directory / f"{name}.pem"
    key = ["rsa:2048"] if rsa else ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", *key, "-nodes", "-subj", "/CN=localhost", "-days", "2"]
        + ["-addext", "subjectAltName=DNS:localhost"]
        + ["-keyout", str(cert.with_suffix(".key")), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return cert
