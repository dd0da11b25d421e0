"""The socket of the server."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.serve.server import LOCAL_NAMES, is_local, listen, local_names, url


def test_a_socket_of_this_machine_and_one_for_all():
    with listen("127.0.0.1", 0) as local, listen("0.0.0.0", 0) as everybody:
        assert is_local(local) and not is_local(everybody)
        assert url(local) == f"http://127.0.0.1:{local.getsockname()[1]}/v1"


def test_a_local_server_may_be_called_by_the_address_that_it_was_given():
    with listen("127.0.0.2", 0) as local:
        assert is_local(local)
        assert set(local_names("MyHost", local)) == {"myhost", "127.0.0.2", *LOCAL_NAMES}


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1", "x" * 300])
def test_an_address_that_is_none_of_this_machine(host):
    with pytest.raises(UserError, match=f"cannot listen at {host} port 0"):
        listen(host, 0)


def test_an_address_that_is_taken():
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match=r"in use.*--port"):
        listen("127.0.0.1", taken.getsockname()[1])
