"""The kernels' sources compiled by hand, through the bindings and from their folder: what nvrtc.py is compared with."""

import pytest

from s_resnet.kernels.build import nvrtc

needs_nvrtc = pytest.mark.skipif(nvrtc.compiler()[0] is None, reason=nvrtc.compiler()[1])


def compiled(kind, names, arch, *options, file="membrane.cu", flags=nvrtc.FLAGS):
    """The ``"CUBIN"`` or ``"PTX"`` of several instances, and the log."""
    from cuda.bindings import nvrtc as bindings

    given = [flag.encode() for flag in (*flags, f"--gpu-architecture={arch}", f"-I{nvrtc.HERE}", *options)]
    made = ok(bindings.nvrtcCreateProgram((nvrtc.HERE / file).read_bytes(), file.encode(), 0, [], []))
    for name in names:
        ok(bindings.nvrtcAddNameExpression(made, name.encode()))
    status = bindings.nvrtcCompileProgram(made, len(given), given)
    log = filled(bindings, "ProgramLog", made).decode()
    assert int(status[0]) == 0, log
    return filled(bindings, kind, made), log


def ok(returned):
    assert int(returned[0]) == 0, returned
    return returned[1] if len(returned) > 1 else None


def filled(bindings, what, made):
    text = bytearray(ok(getattr(bindings, f"nvrtcGet{what}Size")(made)))  # Python shares bytes of length 1
    ok(getattr(bindings, f"nvrtcGet{what}")(made, text))
    return bytes(text)
