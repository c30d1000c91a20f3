"""Keeps libraries from reporting usage over the network and from changing the process."""

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from tempfile import TemporaryDirectory

from exfuse.cache import private_folder

_REPORTS = "openvino_telemetry"  # the package that sends OpenVINO's and NNCF's reports
_SILENT = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "MPLCONFIGDIR": "matplotlib"}
_LEFT = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"  # set by torch's compiler
_lock = threading.RLock()  # all threads share the filters and the environment


@contextmanager
def contained() -> Iterator[None]:
    """Runs a block in which libraries report nothing; restores the warning filters and the environment afterwards.

    OpenVINO, NNCF and ONNX Runtime report usage to their makers, the first and the last on a bare import. torch's
    compiler sets an environment variable and keeps compiled code in a folder in `/tmp` that another user could have
    created beforehand.
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
    """Makes libraries report nothing and keep their files in our cache, unless the user has set another folder.

    Call it directly only in a process of our own; `contained` undoes it. If the cache cannot be used, a temporary
    folder replaces it, because the libraries' defaults in `/tmp` could have been created by another user.
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
    """Keeps OpenVINO and NNCF from reporting, by making the package that sends the reports unavailable."""
    if sys.modules.get(_REPORTS) is None:
        is_outermost = _REPORTS not in sys.modules
        sys.modules[_REPORTS] = None  # type: ignore[assignment]  # makes an import fail
        try:
            yield
        finally:
            if is_outermost:
                del sys.modules[_REPORTS]
        return
    # The caller has imported OpenVINO already, so decline the consent that it checks before each report.
    from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

    check = OptInChecker.check
    OptInChecker.check = lambda *_, **__: ConsentCheckResult.DECLINED
    try:
        yield
    finally:
        OptInChecker.check = check
