"""Libraries that use torch.nn's recurrent modules: their models, converted, beside what they were.

``make test-clients`` runs these in an environment of their own, of constraints-clients.txt.  Of what the libraries warn
is not for this suite to judge: it runs with ``-W ignore``.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
