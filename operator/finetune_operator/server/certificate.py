"""The TLS certificate of the operator's metrics: from a Secret, or self-signed, as with controller-runtime."""

import asyncio
import datetime
import logging
import pathlib
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

logger = logging.getLogger(__name__)

# The keys of a Secret of type kubernetes.io/tls.
CERTIFICATE_FILE_NAME = "tls.crt"
KEY_FILE_NAME = "tls.key"
# The kubelet needs about a minute to write a renewed Secret into the pod.
_RELOAD_SECONDS = 60.0
_SELF_SIGNED_DAYS = 3650


def build_tls_context(directory: pathlib.Path | None, host: str) -> ssl.SSLContext:
    """Return the context of a server with the certificate in a directory, or with a self-signed one for a host name (None).

    Raise ValueError with a sentence if the files can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if directory is not None:
        load_certificate(context, directory)
        return context
    with tempfile.TemporaryDirectory() as scratch:
        _write_self_signed(pathlib.Path(scratch), host)
        load_certificate(context, pathlib.Path(scratch))
    return context


def load_certificate(context: ssl.SSLContext, directory: pathlib.Path) -> None:
    """Use the certificate in a directory for all later connections. Raise ValueError with a sentence if it can't be used."""
    try:
        context.load_cert_chain(directory / CERTIFICATE_FILE_NAME, directory / KEY_FILE_NAME)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"the certificate for the metrics can't be used: {directory} needs {CERTIFICATE_FILE_NAME} and {KEY_FILE_NAME}, "
            f"as a Secret of type kubernetes.io/tls has them: {error}"
        ) from error


async def reload_certificate(context: ssl.SSLContext, directory: pathlib.Path) -> None:
    """Load the certificate again and again, because it is renewed in its Secret. Keep the last one that could be used."""
    while True:
        await asyncio.sleep(_RELOAD_SECONDS)
        try:
            load_certificate(context, directory)
        except ValueError as error:
            logger.warning("%s", error)


def _write_self_signed(directory: pathlib.Path, host: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetune-operator")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # the clocks of clients differ
        .not_valid_after(now + datetime.timedelta(days=_SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / CERTIFICATE_FILE_NAME).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / KEY_FILE_NAME).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
