"""The run that many tests look at, go on from or compare with."""

from pathlib import Path

import pytest

from support.tiny_run import tiny_config, train_quietly


@pytest.fixture(scope="session")
def finished(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the run folder of a whole run that nothing disturbed; not to be changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train_quietly(tiny_config(pack, run))
    return run
