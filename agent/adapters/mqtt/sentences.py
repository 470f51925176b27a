"""What goes wrong between a client and a broker, said so that its reader knows what to do."""

import socket
import ssl
from pathlib import Path

from agent.core.settings import BrokerSettings

FAILED = 0x80
"""Reason codes from here on are failures."""
NOBODY_LISTENS = 0x10
UNSUPPORTED_PROTOCOL = 0x84
NOT_AUTHORISED = 0x87
SESSION_TAKEN_OVER = 0x8E

LOST = "the connection was lost"

# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNTRUSTED = (2, 18, 19, 20, 21)
_OTHER_NAME = (62, 64)


def connect_failure(error: Exception, broker: BrokerSettings, timeout_s: float, clock: str) -> str:
    """Say why a connection could not be made. `clock`: the wall time, which an expiry may be the fault of."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(error, broker, clock)
    if isinstance(error, ssl.SSLError):
        return tls_failure(str(error))
    if isinstance(error, socket.gaierror):
        return f"the name {broker.host} cannot be resolved: check the url, the network and its DNS"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: check that the broker runs, and the port"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s: check host, port and firewall"
    if broker.tls and isinstance(error, ConnectionError):
        return "it closed the connection before TLS was agreed on: check that the port speaks TLS, or use mqtt://"
    return f"cannot be reached: {error.strerror if isinstance(error, OSError) and error.strerror else error}"


def tls_failure(text: str) -> str:
    """Say what a failure of TLS means, from OpenSSL's own words for it."""
    upper = text.upper()
    if "WRONG_VERSION_NUMBER" in upper or "RECORD_LAYER" in upper:
        return "the port does not speak TLS: use mqtt:// or the broker's TLS port"
    if "CERTIFICATE REQUIRED" in upper or "CERTIFICATE_REQUIRED" in upper:
        return "the broker wants a client certificate: set cert_file and key_file"
    if "ALERT" in upper and any(word in upper for word in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")):
        return f"the broker does not accept the client certificate: check cert_file and key_file ({text})"
    if "PROTOCOL" in upper:
        return f"the broker offers nothing from TLS 1.2 on ({text})"
    return f"TLS failed: {text}"


def unreadable(setting: str, path: Path, error: Exception) -> str:
    """Say that a file of the configuration cannot be used."""
    if isinstance(error, FileNotFoundError):
        return f"{setting} {path} does not exist"
    if isinstance(error, PermissionError):
        return f"{setting} {path} may not be read by this user"
    if isinstance(error, ssl.SSLError) and "KEY_VALUES_MISMATCH" in str(error):
        return f"{setting} {path} does not belong to cert_file"
    if isinstance(error, (ssl.SSLError, UnicodeDecodeError)):
        return f"{setting} {path} holds nothing that can be used: it must be PEM, and a key without a passphrase"
    return f"{setting} {path} cannot be read: {error}"


def refusal(code: int, name: str, client_id: str, protocol: str) -> str:
    """Say why the broker did not accept a connection. `name`: of the reason `code`."""
    if code in (0x86, NOT_AUTHORISED):
        return "not authorised: check user and password_file"
    if code == UNSUPPORTED_PROTOCOL:
        if protocol != "5":
            return f'the broker does not speak MQTT {protocol}: set protocol = "5"'
        return 'the broker does not speak MQTT 5: set protocol = "3.1.1"; requests to the cloud need another broker'
    if code == 0x85:
        return f"the broker does not accept the client id {client_id!r}: change [agent] name"
    return f"the broker refuses the connection: {name.lower()}"


def ended(code: int, name: str, client_id: str, keepalive_s: float) -> str:
    """Say why the broker ended a connection, or paho did."""
    if code == SESSION_TAKEN_OVER:
        return f"another client uses the client id {client_id!r}: give every agent its own [agent] name"
    if code == NOT_AUTHORISED:
        return "the broker ended the connection: not authorised, check its ACL"
    if code == 0x8D:
        return f"{LOST}: no sign of life from the broker in {keepalive_s:g} s"
    if code < FAILED or name == "Unspecified error":
        return LOST
    return f"the broker ended the connection: {name.lower()}"


def lost_again(client_id: str, stable_s: float) -> str:
    """Say what it means that connections do not hold: not every broker says that another client took one over."""
    return (
        f"{LOST} again within {stable_s:g} s: another client may use the client id {client_id!r}; see the broker's log"
    )


def not_published(code: int, name: str, topic: str) -> str:
    """Say why the broker did not take a message."""
    if code == NOT_AUTHORISED:
        return f"not authorised: the broker's ACL does not let this client publish to {topic}"
    return f"the broker did not take the message for {topic}: {name.lower()}"


def not_subscribed(code: int, name: str, topic_filter: str) -> str:
    """Say why the broker did not grant a subscription. In MQTT 3.1.1 it never says why: an ACL, as a rule."""
    if code in (0x80, NOT_AUTHORISED):
        return f"the broker's ACL does not let this client subscribe to {topic_filter}"
    return f"the broker refused the subscription to {topic_filter}: {name.lower()}"


def _certificate(error: ssl.SSLCertVerificationError, broker: BrokerSettings, clock: str) -> str:
    code, trusted = error.verify_code, "ca_file" if broker.ca_file else "a CA of this system: set ca_file"
    if code == _EXPIRED:
        return f"the broker's certificate has expired: renew it, or set this board's clock, which says {clock}"
    if code == _NOT_YET_VALID:
        return f"the broker's certificate is not valid yet: set this board's clock, which says {clock}"
    if code in _UNTRUSTED:
        return f"the broker's certificate is not signed by {trusted}"
    if code in _OTHER_NAME:
        return f"the broker's certificate is not for {broker.host}: use a name that it is for in the url"
    return f"the broker's certificate cannot be trusted: {error.verify_message}"
