"""Writing the MP4 of a clip: one video track and, with sound, one audio track."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet


class Movie:
    """An MP4 file that is being written: streams are added first, then everything is muxed in one go.

    Attributes:
        output: PyAV's container, for adding the video stream.
        has_audio: whether a sound track was added.
    """

    def __init__(self, target: str) -> None:
        # bitexact leaves out the version of the muxer, faststart lets training read a clip from its first bytes.
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        self.output = av.open(target, "w", format="mp4", options=options)
        self.has_audio = False
        self._sound: list[Packet] = []

    def __enter__(self) -> Movie:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.output.close()

    def add_sound(self, track: AudioStream | None) -> None:
        """Add a finished track, if there is one, after the video stream."""
        if track is None:
            return
        stream = self.output.add_stream_from_template(track)
        container = track.container
        assert isinstance(container, InputContainer)
        for packet in container.demux(track):
            if packet.size:
                packet.stream = stream
                self._sound.append(packet)
        self.has_audio = True

    def mux(self, video: Iterable[Packet]) -> int:
        """Write all packets, sound up to each picture's time before it; return how many pictures there were."""
        count, sound = 0, self._sound[::-1]
        for packet in video:
            while sound and _time(sound[-1]) <= _time(packet):
                self.output.mux(sound.pop())
            self.output.mux(packet)
            count += 1
        while sound:
            self.output.mux(sound.pop())
        return count


def _time(packet: Packet) -> float:
    return float((packet.dts or 0) * packet.time_base)
