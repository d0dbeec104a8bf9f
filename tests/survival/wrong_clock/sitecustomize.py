"""On PYTHONPATH it makes the wall clock of a Python process wrong by WRONG_BY seconds; the others stay as they are."""

import datetime
import os
import time

_WRONG_BY = float(os.environ.get("WRONG_BY", "0"))
_time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime


class _WrongDatetime(_datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=_WRONG_BY)


time.time = lambda: _time() + _WRONG_BY
time.time_ns = lambda: _time_ns() + int(_WRONG_BY * 1e9)
datetime.datetime = _WrongDatetime
