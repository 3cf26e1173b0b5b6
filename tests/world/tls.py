"""A private certificate authority."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Authority:
    def __init__(self) -> None:
        self.authority = trustme.CA()

    def write(self, path: Path) -> Path:
        """Write the authority's certificate, for REQUESTS_CA_BUNDLE."""
        self.authority.cert_pem.write_to_path(str(path))
        return path

    def server_context(self, *names: str) -> ssl.SSLContext:
        """Return a context for a server of these names; `*.webkassa.kz` is good for any host."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(*names).configure_cert(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a context for a client that trusts this authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context
