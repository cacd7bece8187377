"""Messages between the processes of a job, where one of them leaves at a bad moment."""

from __future__ import annotations

import torch.distributed as dist

from kdcompress.engine.contact import Contact


def test_a_peer_that_left_after_its_message_is_not_waited_for() -> None:
    """Between its message and its count, a process may be killed; the others would wait for that count forever."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    contact = Contact(store, rank=0, world=2, seconds=1.0)
    store.set("message/1/1", (1).to_bytes(4, "big") + b"the last words")
    try:
        assert contact.gather(b"mine") == [b"mine", b"the last words"]
    finally:
        contact.left.set()
