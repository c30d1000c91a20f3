"""What libraries do to the process and to the network while they are imported or convert, kept from both."""

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from tempfile import TemporaryDirectory

from exfuse.cache import private_folder

_REPORTS = "openvino_telemetry"  # what OpenVINO and NNCF report their use with
_SILENT = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "MPLCONFIGDIR": "matplotlib"}
_LEFT = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"  # set by torch's compiler
_lock = threading.RLock()  # what is put back belongs to all threads


@contextmanager
def contained() -> Iterator[None]:
    """Runs a block in which libraries report nothing, and puts back the warning filters and the environment after it.

    OpenVINO, NNCF and ONNX Runtime report their use to their makers, the first and the last on a bare import; torch's
    compiler sets a variable and keeps compiled code in a folder of `/tmp` that anyone could have made before.
    """
    with _lock, warnings.catch_warnings(), _without_reports():
        before = {name: os.environ.get(name) for name in (*_SILENT, *_FOLDERS, _LEFT)}
        set_variables()
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def set_variables() -> None:
    """Has libraries report nothing, and keep their files in our cache unless the user says where.

    For good where the process is our own, else within `contained`. Where the cache cannot be used, a folder that ends
    with the process takes its place: the libraries' own would be one in /tmp that anybody could have made before.
    """
    os.environ.update(_SILENT)
    for name, folder in _FOLDERS.items():
        if name not in os.environ:
            try:
                os.environ[name] = str(private_folder(folder))
            except OSError:
                os.environ[name] = _temporary_folder(folder).name


@cache
def _temporary_folder(name: str) -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix=f"exfuse-{name}-", ignore_cleanup_errors=True)


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keeps OpenVINO and NNCF from reporting: they do not where the package for it cannot be imported."""
    if sys.modules.get(_REPORTS) is None:
        is_outermost = _REPORTS not in sys.modules
        sys.modules[_REPORTS] = None  # type: ignore[assignment]  # as Python marks what is not to be imported
        try:
            yield
        finally:
            if is_outermost:
                del sys.modules[_REPORTS]
        return
    # The caller has imported OpenVINO before: what it asks before each report is answered for the moment.
    from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

    check = OptInChecker.check
    OptInChecker.check = lambda *_, **__: ConsentCheckResult.DECLINED
    try:
        yield
    finally:
        OptInChecker.check = check
