"""What users write with etcd3, over gRPC.

Its locks are left out: they need a release of tenacity that no longer runs on today's Python.
"""

import io
import queue

import etcd3

import cases
from cases import equal, eventually, raises


def connect(host, port):
    return etcd3.client(host=host, port=port, timeout=30)


def case_put_get_delete(client, prefix):
    key = prefix + "a"
    client.put(key, "1")
    value, about = client.get(key)
    equal("the pair", (value, about.key, about.version), (b"1", key.encode(), 1))
    before = client.put(key, bytes(range(256)), prev_kv=True)
    equal("the value before", before.prev_kv.value, b"1")
    equal("a binary value", client.get(key)[0], bytes(range(256)))
    equal("a serializable read", client.get(key, serializable=True)[1].version, 2)
    equal("created again", client.put_if_not_exists(key, "2"), False)
    equal("created", client.put_if_not_exists(prefix + "b", "2"), True)
    equal("replaced", client.replace(prefix + "b", "2", "3"), True)
    equal("replaced again", client.replace(prefix + "b", "2", "4"), False)
    gone = client.delete(key, prev_kv=True, return_response=True)
    equal("deleted", (gone.deleted, gone.prev_kvs[0].value), (1, bytes(range(256))))
    equal("no value", client.get(key), (None, None))
    equal("deleted by prefix", client.delete_prefix(prefix).deleted, 1)


def case_ranges(client, prefix):
    for name in ["b", "c", "a"]:
        client.put(prefix + name, name.upper())
    equal("by prefix", [value for value, _ in client.get_prefix(prefix)], [b"A", b"B", b"C"])
    down = client.get_prefix(prefix, sort_order="descend", sort_target="key")
    equal("descending", [value for value, _ in down], [b"C", b"B", b"A"])
    created = client.get_prefix(prefix, sort_order="ascend", sort_target="create")
    equal("in the order of creation", [value for value, _ in created], [b"B", b"C", b"A"])
    ranged = client.get_range(prefix + "a", prefix + "c")
    equal("a range", [value for value, _ in ranged], [b"A", b"B"])
    keys = client.get_prefix(prefix, keys_only=True)
    equal("keys only", [value for value, _ in keys], [b"", b"", b""])
    mine = [about.key for _, about in client.get_all() if about.key.startswith(prefix.encode())]
    equal("all keys", len(mine), 3)


def case_transactions(client, prefix):
    key, calls = prefix + "a", client.transactions
    client.put(key, "1")
    well, answers = client.transaction(
        compare=[calls.value(key) == "1", calls.version(key) > 0, calls.create(prefix + "none") == 0],
        success=[calls.put(key, "2"), calls.get(key), calls.delete(prefix + "none")],
        failure=[calls.put(key, "wrong")],
    )
    equal("succeeded", well, True)
    equal("read", answers[1][0][0], b"2")
    well, answers = client.transaction(
        compare=[calls.mod(key) == 1],
        success=[],
        failure=[calls.txn(
            compare=[calls.value(key) == "2"],
            success=[calls.put(prefix + "nested", "1")],
            failure=[],
        )],
    )
    equal("succeeded", well, False)
    equal("nested", client.get(prefix + "nested")[0], b"1")
    raises("a key put twice", Exception, lambda: client.transaction(
        compare=[], success=[calls.put(key, "1"), calls.put(key, "2")], failure=[]))


def case_leases(client, prefix):
    lease = client.lease(60)
    client.put(prefix + "a", "1", lease=lease)
    equal("granted", lease.granted_ttl, 60)
    assert 0 < lease.remaining_ttl <= 60
    equal("its keys", list(lease.keys), [(prefix + "a").encode()])
    equal("refreshed", lease.refresh()[0].TTL, 60)
    lease.revoke()
    equal("left", client.get(prefix + "a"), (None, None))
    equal("a chosen id", client.lease(60, lease_id=7777).id, 7777)
    raises("the same id again", Exception, lambda: client.lease(60, lease_id=7777))
    client.revoke_lease(7777)
    short = client.lease(1)
    client.put(prefix + "short", "1", lease=short)
    eventually("the end of a short lease", lambda: client.get(prefix + "short") == (None, None))


def case_watches(client, prefix):
    events, cancel = client.watch_prefix(prefix, prev_kv=True)
    client.put(prefix + "a", "1")
    client.put(prefix + "a", "2")
    client.delete(prefix + "a")
    seen = [next(events) for _ in range(3)]
    cancel()
    kinds = [type(event).__name__ for event in seen]
    equal("the kinds", kinds, ["PutEvent", "PutEvent", "DeleteEvent"])
    equal("the values", [event.value for event in seen], [b"1", b"2", b""])
    equal("the values before", [event.prev_value for event in seen], [b"", b"1", b"2"])
    start = seen[0].mod_revision
    past, cancel = client.watch(prefix + "a", start_revision=start + 1)
    equal("from the past", next(past).value, b"2")
    cancel()
    got = queue.Queue()
    number = client.add_watch_callback(prefix + "b", got.put)
    client.put(prefix + "b", "1")
    equal("called back", got.get(timeout=20).events[0].value, b"1")
    client.cancel_watch(number)


def case_compaction(client, prefix):
    for number in range(3):
        client.put(prefix + "a", str(number))
    now = client.get(prefix + "a")[1].mod_revision
    client.compact(now, physical=True)
    events, cancel = client.watch(prefix + "a", start_revision=now - 2)
    error = raises("a compacted watch", etcd3.exceptions.RevisionCompactedError, lambda: next(events))
    equal("where it may begin", error.compacted_revision, now)


def case_maintenance(client, prefix):
    status = client.status()
    assert status.version and status.db_size > 0 and status.raft_term > 0
    members = list(client.members)
    assert status.leader.id in [member.id for member in members], members
    equal("alarms", list(client.list_alarms()), [])
    assert client.hash() != 0
    client.defragment()
    client.put(prefix + "a", "1")
    file = io.BytesIO()
    client.snapshot(file)
    assert len(file.getvalue()) % 512 == 32, len(file.getvalue())


if __name__ == "__main__":
    cases.run("etcd3", globals(), connect)
