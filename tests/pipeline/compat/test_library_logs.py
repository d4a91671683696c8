"""What libraries print without being asked is silenced, by names that they still use."""

import logging
from importlib.util import find_spec
from pathlib import Path

from transformers.utils import logging as transformers_logging

from pipeline.compat.library_logs import quiet_libraries


def test_progress_bars_of_transformers_are_off_where_there_is_no_terminal() -> None:
    transformers_logging.enable_progress_bar()
    quiet_libraries()
    assert not transformers_logging.is_progress_bar_enabled()


def test_bitsandbytes_logs_its_hint_under_the_silenced_name() -> None:
    quiet_libraries()
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
    spec = find_spec("bitsandbytes")
    if spec is not None and spec.origin is not None:
        source = (Path(spec.origin).parent / "backends" / "cpu" / "ops.py").read_text()
        assert "logger = logging.getLogger(__name__)" in source
