"""What users write with etcd3gw, over the JSON gateway."""

import etcd3gw
from etcd3gw.exceptions import Etcd3Exception

import cases
from cases import equal, eventually, raises


def connect(host, port):
    return etcd3gw.client(host=host, port=port, timeout=30)


def case_put_get_delete(client, prefix):
    key = prefix + "a"
    assert client.put(key, "1")
    equal("the value", client.get(key), [b"1"])
    value, about = client.get(key, metadata=True)[0]
    equal("the key", about["key"], key.encode())
    equal("the version", about["version"], "1")
    assert int(about["create_revision"]) == int(about["mod_revision"]) > 0
    client.put(key, bytes(range(256)))
    equal("a binary value", client.get(key), [bytes(range(256))])
    client.put(key, "")
    equal("an empty value", client.get(key), [b""])
    equal("deleted", client.delete(key), True)
    equal("deleted again", client.delete(key), False)
    equal("no value", client.get(key), [])


def case_ranges(client, prefix):
    for name in ["b", "c", "a"]:
        client.put(prefix + name, name.upper())
    values = [value for value, _ in client.get_prefix(prefix)]
    equal("by prefix", values, [b"A", b"B", b"C"])
    down = client.get_prefix(prefix, sort_order="descend", sort_target="value")
    equal("descending", [value for value, _ in down], [b"C", b"B", b"A"])
    mine = [about["key"] for _, about in client.get_all() if about["key"].startswith(prefix.encode())]
    equal("all keys", len(mine), 3)
    equal("limited", len(client.get(prefix, range_end=prefix + "\x7f", limit=2)), 2)
    equal("keys only", client.get(prefix + "a", keys_only=True), [b""])
    equal("deleted by prefix", client.delete_prefix(prefix), True)
    equal("left", client.get_prefix(prefix), [])


def case_transactions(client, prefix):
    key = prefix + "a"
    equal("created", client.create(key, "1"), True)
    equal("created again", client.create(key, "2"), False)
    equal("replaced", client.replace(key, "1", "2"), True)
    equal("replaced again", client.replace(key, "1", "3"), False)
    equal("the value", client.get(key), [b"2"])
    encoded = etcd3gw.utils._encode(key)
    answer = client.transaction({
        "compare": [{"key": encoded, "result": "GREATER", "target": "VERSION", "version": 1}],
        "success": [{"request_range": {"key": encoded}}, {"request_delete_range": {"key": encoded}}],
        "failure": [],
    })
    equal("succeeded", answer["succeeded"], True)
    equal("read", answer["responses"][0]["response_range"]["kvs"][0]["value"], etcd3gw.utils._encode("2"))
    equal("deleted", answer["responses"][1]["response_delete_range"]["deleted"], "1")


def case_leases(client, prefix):
    lease = client.lease(ttl=60)
    client.put(prefix + "a", "1", lease=lease)
    client.put(prefix + "b", "1", lease=lease)
    equal("its keys", sorted(lease.keys()), [(prefix + "a").encode(), (prefix + "b").encode()])
    assert 0 < lease.ttl() <= 60
    equal("refreshed", lease.refresh(), 60)
    lease.revoke()
    equal("left", client.get_prefix(prefix), [])
    equal("refreshed after the end", lease.refresh(), -1)
    equal("time left after the end", lease.ttl(), -1)
    raises("a put with a lease that has ended", Etcd3Exception, lambda: client.put(prefix + "a", "1", lease=lease))
    short = client.lease(ttl=1)
    client.put(prefix + "short", "1", lease=short)
    eventually("the end of a short lease", lambda: client.get(prefix + "short") == [])


def case_locks(client, prefix):
    one, two = client.lock(id=prefix, ttl=60), client.lock(id=prefix, ttl=60)
    equal("acquired", one.acquire(), True)
    equal("acquired by another", two.acquire(), False)
    equal("held", (one.is_acquired(), two.is_acquired()), (True, False))
    equal("refreshed", one.refresh(), 60)
    equal("released by another", two.release(), False)
    equal("released", one.release(), True)
    with two:
        equal("held", two.is_acquired(), True)
    equal("held afterwards", two.is_acquired(), False)


def case_watches(client, prefix):
    events, cancel = client.watch_prefix(prefix, prev_kv=True)
    client.put(prefix + "a", "1")
    client.put(prefix + "a", "2")
    client.delete(prefix + "a")
    seen = [next(events) for _ in range(3)]
    cancel()
    equal("the keys", {event["kv"]["key"] for event in seen}, {(prefix + "a").encode()})
    equal("the values", [event["kv"].get("value") for event in seen], [b"1", b"2", None])
    equal("the kinds", [event.get("type") for event in seen], [None, None, "DELETE"])
    start = int(seen[0]["kv"]["mod_revision"])
    past = client.watch_once(prefix + "a", timeout=20, start_revision=start + 1)
    equal("from the past", past["kv"]["value"], b"2")
    filtered = client.watch_once(prefix + "a", timeout=20, start_revision=start, filters=["NOPUT"])
    equal("without puts", filtered["type"], "DELETE")
    raises("nothing to come", Exception, lambda: client.watch_once(prefix + "none", timeout=0.3))


def case_members(client, prefix):
    status = client.status()
    assert status["version"] and int(status["raftTerm"]) > 0 and int(status["dbSize"]) > 0, status
    members = client.members()
    assert status["leader"] in [member["ID"] for member in members], members
    assert all(member["clientURLs"] and member["peerURLs"] for member in members), members


if __name__ == "__main__":
    cases.run("etcd3gw", globals(), connect)
