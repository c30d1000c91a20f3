"""Helpers that tests of several files share; pytest puts the folder above on the path, as it holds conftest.py."""

import pytest

pytest.register_assert_rewrite("support.limits", "support.loading", "support.process_state", "support.tiny_run")
