"""Where a group of workers connects, and by which backend."""

from collections.abc import Iterator

import psutil
import pytest
import torch
import torch.distributed as dist

from krscale.cluster.meeting import Meeting, listening_socket
from krscale.errors import UserError
from krscale.parallel import Workers


@pytest.fixture
def joined() -> Iterator[tuple[Meeting, Workers]]:
    server = listening_socket("127.0.0.1")
    meeting = Meeting("127.0.0.1", server.getsockname()[1], num_workers=1, on_gpu=False)
    workers = meeting.join(0, server)
    yield meeting, workers
    dist.destroy_process_group()


def test_a_group_listens_where_it_is_told(joined: tuple[Meeting, Workers]) -> None:
    meeting, workers = joined
    assert workers == Workers(0, 1, torch.device("cpu"))
    assert dist.get_backend() == "gloo"
    connections = psutil.Process().net_connections()
    found = {c.laddr.ip for c in connections if c.laddr.port == meeting.port}
    assert found == {"127.0.0.1"}


def test_a_reserved_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    meeting = Meeting("127.0.0.1", 1, num_workers=2, on_gpu=True)
    with pytest.raises(UserError, match=r"worker 2 of 2 .* torch sees none.*gpus_per_trial = 0"):
        meeting.join(1)
