"""Frames survive any cut of the stream."""

from hypothesis import given
from hypothesis import strategies as st

from toolgym.engines.wire import Frames, frame

MESSAGES = [["generate", 1, b"\x00\xff" * 9, None, 2**64 - 1, [4, 1.0, ()]], ["beat"], ["error", 3, "ärger"]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_frames_are_cut_anywhere(sizes):
    stream = b"".join(frame(message) for message in MESSAGES * 3)
    frames, got, start = Frames(), [], 0
    for size in [*sizes, len(stream)]:
        got += frames.feed(stream[start : start + size])
        start += size
    expected = [[*m[:-1], [4, 1.0, []]] if m[0] == "generate" else m for m in MESSAGES]
    assert got == expected * 3
