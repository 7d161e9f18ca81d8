"""Small servers on loopback for what the sandbox is not: TLS with a CA of one's own, a proxy, a web page."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_DAY = datetime.timedelta(days=1)


@contextlib.contextmanager
def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve connections on a free port, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:

        async def stop() -> None:
            server.close()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def request_head(reader: asyncio.StreamReader) -> tuple[str, int]:
    """Read the head of a request; returns it and the size of the body that follows."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    return head, int(head.lower().partition("content-length: ")[2].partition("\r\n")[0] or 0)


def answering(status: str, body: str = "", **headers: str) -> Handler:
    """Answer every request so and hang up."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    answer = "\r\n".join([*lines, "", body]).encode()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    return handle


async def hanging_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the request and close without a word."""
    with contextlib.suppress(OSError):
        await reader.read(1)
    writer.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take requests and never answer, until the client goes."""
    with contextlib.suppress(OSError):
        while await reader.read(65536):
            pass
    writer.close()


def passing_on(port: int) -> Handler:
    """Pass everything on to another port of this machine, both ways."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(asyncio.CancelledError):  # the end of the server
            await asyncio.gather(pump(reader, back), pump(there, writer))

    return handle


async def tunnelling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A proxy: take `CONNECT host:port` to this machine and pass everything on."""
    head = await reader.readuntil(b"\r\n\r\n")
    port = int(head.split()[1].rpartition(b":")[2])
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await passing_on(port)(reader, writer)


@dataclass(frozen=True)
class Authority:
    """A certificate authority for tests."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, _certificate(name, key, None, ca=True))

    def write(self, folder: Path) -> str:
        """Write its certificate; returns the file."""
        file = folder / f"{self.certificate.serial_number}.pem"
        file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return str(file)

    def tls(self, folder: Path, name: str, *, expired: bool = False) -> tuple[ssl.SSLContext, str]:
        """A server's TLS context for `name` (a host name or an address), and the file of its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, self, expired=expired)
        file, key_file = folder / f"{certificate.serial_number}.pem", folder / f"{certificate.serial_number}.key"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file, key_file)
        return context, str(file)


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: Authority | None, *, ca: bool = False, expired: bool = False
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    alternative: x509.GeneralName
    try:
        alternative = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name.replace(" ", "-"))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 10 * _DAY)
        .not_valid_after(now - _DAY if expired else now + 10 * _DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        # Python 3.13 and newer ask for these three.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer.key if issuer else key).public_key()),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=ca,
                crl_sign=ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
