"""What a calibration from Python says by itself."""

from __future__ import annotations

import io

import pytest
from calibrated import convnet, images

import metasched
from metasched.calibration.telling import TellIfLong
from metasched.calibration.walking import Progress
from metasched.tracking.console import open_console


def test_only_a_long_calibration_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    metasched.calibrate(convnet(), metasched.Recipe("ste", granularity="channel"), [images()], "nearest")
    assert capsys.readouterr().out == ""
    stream = io.StringIO()
    tell = TellIfLong(lambda: open_console(stream))
    for done, seconds in ((0, 1.0), (1, 4.0), (1, 6.0), (2, 8.0)):
        tell(Progress("conv2", done, 2, seconds, left=2.0 * (2 - done)))
    assert stream.getvalue().splitlines() == ["calibrate: 1/2 units, about 2 s left", "units 2/2  conv2  in 0 s"]
