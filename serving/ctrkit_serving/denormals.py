"""Denormals as zero, for the calling thread and no longer than asked.

Denormal floats cost a processor up to two hundred times the work, and embeddings that weight decay shrinks end there.
ONNX Runtime's own switch (`session.set_denormal_as_zero`) works in the thread that builds the first session of a
process only, and leaves that thread's arithmetic changed for everybody. So the switch is turned here, in the C
library's floating-point environment, around each run.
"""

import ctypes
import platform

_SWITCHES = {
    ("Linux", "x86_64"): (7, 0x8040),  # word of fenv_t that holds MXCSR; flush to zero, denormals are zero
    ("Linux", "aarch64"): (0, 1 << 24),  # FPCR; flush to zero, inputs too
}
_Environment = ctypes.c_uint32 * 16


def _library() -> ctypes.PyDLL | None:
    try:
        library = ctypes.PyDLL(None)  # keeps the GIL: the calls take nanoseconds
        return library if library.fegetenv and library.fesetenv else None
    except (AttributeError, OSError, TypeError):
        return None


_SWITCH = _SWITCHES.get((platform.system(), platform.machine()))
_LIBRARY = _library()


class denormals_as_zero:  # noqa: N801
    """Take denormals for zero in this thread while the body runs; nothing changes on systems not known here."""

    __slots__ = ("_before",)  # a class, not a generator: each request pays for it
    _before: ctypes.Array[ctypes.c_uint32] | None

    def __enter__(self) -> None:
        if _SWITCH is None or _LIBRARY is None:
            self._before = None
            return
        word, bits = _SWITCH
        self._before = before = _Environment()
        _LIBRARY.fegetenv(before)
        unchanged = before[word]
        before[word] = unchanged | bits
        _LIBRARY.fesetenv(before)
        before[word] = unchanged

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            assert _LIBRARY is not None
            _LIBRARY.fesetenv(self._before)
