"""The format `har1`: binary frames of samples, COBS-framed on a serial line, bare in MQTT.

A frame, little-endian:

    u8   version    1
    u8   n          samples, 1 to 255
    u32  seq        number of the first sample, wraps
    u64  t_us       time of the first sample on the device's clock
    u32  period_ns  from one sample to the next
    f32  acc_scale  g per count
    f32  gyro_scale rad/s per count
    i16  6 n        ax ay az gx gy gz, sample by sample
    u16  CRC-16/CCITT-FALSE of all before (polynomial 0x1021, start 0xFFFF; of "123456789" it is 0x29B1)

On a serial line each frame is encoded with COBS (Cheshire & Baker 1999), so that it holds no 0x00, and ends with one:
whatever happened before, the next frame begins after the next zero. Units are fixed by the protocol.
"""

import struct
from binascii import crc_hqx

import numpy as np
import numpy.typing as npt

from agent.core.framing import BlockFramer
from agent.core.input import MAX_SECONDS, MAX_VALUE, Intake, Mounting
from agent.records import BadFrame, Decoded, Float32Array, Int64Array, Loss

VERSION = 1
MAX_SAMPLES = 255
_HEADER = struct.Struct("<BBIQIff")
_CRC = struct.Struct("<H")
_SAMPLE_BYTES = 12
_COUNTS = 32768
MAX_FRAME = _HEADER.size + MAX_SAMPLES * _SAMPLE_BYTES + _CRC.size
_MAX_BLOCK = MAX_FRAME + MAX_FRAME // 254 + 1


class Har1Frames:
    """Reads the frames of one device, one after the other."""

    def __init__(self, intake: Intake, mounting: Mounting, acc_scale: float = 1.0, gyro_scale: float = 1.0) -> None:
        """`mounting`: for g and rad/s. `acc_scale`, `gyro_scale`: what it multiplies with besides."""
        self._intake = intake
        self._mounting = mounting
        self._extra = (abs(acc_scale), abs(gyro_scale))
        self._next_seq: int | None = None
        self._scales = (0.0, 0.0)
        self._scale = np.zeros(6, np.float32)
        self._spacing = (0, 0)
        self._offsets: Int64Array = np.zeros(0, np.int64)

    def decode(self, frame: bytes, t_rx_ns: int, where: int) -> list[Decoded]:
        """Decode one frame, without COBS; `where` is its number or place, for `BadFrame`."""
        stream = self._intake.stream
        if len(frame) < _HEADER.size + _CRC.size:
            return [BadFrame(stream, Loss.FRAME, where)]
        if crc_hqx(frame[:-2], 0xFFFF) != _CRC.unpack_from(frame, len(frame) - 2)[0]:
            return [BadFrame(stream, Loss.CHECKSUM, where)]
        version, n, seq, t_us, period_ns, *scales = _HEADER.unpack_from(frame)
        if version != VERSION:
            return [BadFrame(stream, Loss.VERSION, where)]
        if n == 0 or len(frame) != _HEADER.size + n * _SAMPLE_BYTES + _CRC.size:
            return [BadFrame(stream, Loss.FRAME, where)]
        if t_us > MAX_SECONDS * 1e6:
            return [BadFrame(stream, Loss.TIME_RANGE, where, n)]
        if (scales[0], scales[1]) != self._scales and not self._rescale(scales[0], scales[1]):
            return [BadFrame(stream, Loss.VALUE_RANGE, where, n)]
        if (n, period_ns) != self._spacing:
            self._spacing, self._offsets = (n, period_ns), np.arange(n, dtype=np.int64) * period_ns
        counts = np.frombuffer(frame, "<i2", n * 6, _HEADER.size).reshape(n, 6)
        batch = self._intake.batch(self._offsets + t_us * 1000, self._mounting.apply(counts, self._scale), t_rx_ns)
        missed, self._next_seq = self._missed(seq), seq + n
        return [BadFrame(stream, Loss.MISSED, where, missed), batch] if missed else [batch]

    def _rescale(self, acc: float, gyro: float) -> bool:
        """Take other scales; False if they are none, or could make numbers that no sensor gives."""
        if not all(0 < s * _COUNTS * extra <= MAX_VALUE for s, extra in zip((acc, gyro), self._extra, strict=True)):
            return False
        self._scales, self._scale = (acc, gyro), np.array([acc] * 3 + [gyro] * 3, np.float32)
        return True

    def _missed(self, seq: int) -> int:
        """Samples that the numbers say are missing; none where they went back: repeated, or started again."""
        if self._next_seq is None:
            return 0
        ahead = (seq - self._next_seq) & 0xFFFFFFFF
        return ahead if ahead < 1 << 31 else 0


class Har1Decoder:
    """`ports.Decoder` of COBS-framed frames. `BadFrame.where` is the frame's number since the last reset."""

    def __init__(self, intake: Intake, frames: Har1Frames) -> None:
        self._intake = intake
        self._frames = frames
        self._framer = BlockFramer(_MAX_BLOCK)
        self._number = 0

    def feed(self, data: bytes, t_rx_ns: int) -> list[Decoded]:
        """See `ports.Decoder.feed`."""
        out: list[Decoded] = []
        for block in self._framer.feed(data):
            self._number += 1
            frame = cobs_decode(block)
            if frame is None:
                out.append(BadFrame(self._intake.stream, Loss.FRAME, self._number))
            else:
                out += self._frames.decode(frame, t_rx_ns, self._number)
        if self._framer.skipped:
            out.append(BadFrame(self._intake.stream, Loss.GARBAGE, self._number + 1, self._framer.skipped))
            self._framer.skipped = 0
        return out

    def reset(self) -> list[Decoded]:
        """See `ports.Decoder.reset`."""
        torn, at = self._framer.finish(), self._number + 1
        self._number = 0
        out: list[Decoded] = [BadFrame(self._intake.stream, Loss.FRAME, at)] if torn else []
        return [*out, self._intake.interrupted()]


def encode_har1(
    seq: int, t_us: int, period_ns: int, counts: npt.NDArray[np.int16], acc_scale: float, gyro_scale: float
) -> bytes:
    """Return a bare frame; for a serial line, see `cobs_encode`. `counts`: int16 (n, 6), see `to_counts`.

    Raises:
        ValueError: it is not 1 to 255 samples.
    """
    if not 1 <= len(counts) <= MAX_SAMPLES:
        raise ValueError(f"a frame holds 1 to {MAX_SAMPLES} samples, not {len(counts)}")
    head = _HEADER.pack(VERSION, len(counts), seq & 0xFFFFFFFF, t_us, period_ns, acc_scale, gyro_scale)
    frame: bytes = head + counts.astype("<i2").tobytes()
    return frame + _CRC.pack(crc_hqx(frame, 0xFFFF))


def to_counts(values: Float32Array, acc_scale: float, gyro_scale: float) -> npt.NDArray[np.int16]:
    """Round float32 (n, 6), g and rad/s, to the counts of a frame; what does not fit is cut off at the ends."""
    # The scales as the frame carries them.
    scale = np.array([acc_scale] * 3 + [gyro_scale] * 3, np.float32)
    counts: npt.NDArray[np.int16] = np.clip(np.rint(values / scale), -_COUNTS, _COUNTS - 1).astype(np.int16)
    return counts


def cobs_encode(frame: bytes) -> bytes:
    """Return `frame` as a block for a serial line: no zeros but the one that ends it."""
    out = bytearray()
    for part in frame.split(b"\0"):
        while len(part) >= 254:
            out += b"\xff" + part[:254]
            part = part[254:]
        out.append(len(part) + 1)
        out += part
    return bytes(out) + b"\0"


def cobs_decode(block: bytes) -> bytes | None:
    """Return the frame in a block of non-zero bytes, without the zero after it; None if it was damaged."""
    out = bytearray()
    at, end = 0, len(block)
    while at < end:
        code = block[at]
        after = at + code
        if after > end:
            return None
        out += block[at + 1 : after]
        if code < 255 and after < end:
            out.append(0)
        at = after
    return bytes(out)
