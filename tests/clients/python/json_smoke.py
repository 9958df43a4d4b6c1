"""Smoke test of a server's JSON with etcd3gw. The server is named by TAILWATER_ENDPOINTS (host:port)."""

import base64
import os
import sys
import uuid

import etcd3gw


def check(what, got, want):
    if got != want:
        sys.exit(f"{what} is {got!r}, want {want!r}")


endpoint = os.environ.get("TAILWATER_ENDPOINTS")
if not endpoint:
    sys.exit("set TAILWATER_ENDPOINTS to the server's client address, for example 127.0.0.1:2379")
host, port = endpoint.split(",")[0].removeprefix("http://").rsplit(":", 1)
client = etcd3gw.client(host=host, port=int(port), timeout=10)
prefix = f"json/{uuid.uuid4()}/"
key = prefix + "a"

check("status", "version" in client.status(), True)
check("members", len(client.members()) > 0, True)
check("put", client.put(key, "1"), True)
check("value", client.get(key), [b"1"])
check("create", client.create(key, "2"), False)
check("replace", client.replace(key, "1", "3"), True)


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def swap(wanted):
    answer = client.transaction({
        "compare": [{"key": encoded(key), "result": "EQUAL", "target": "VALUE", "value": encoded(wanted)}],
        "success": [{"request_put": {"key": encoded(key), "value": encoded("3")}}],
        "failure": [{"request_range": {"key": encoded(key)}}],
    })
    return answer.get("succeeded", False), list(answer["responses"][0])


check("transaction", swap("3"), (True, ["response_put"]))
check("refused transaction", swap("1"), (False, ["response_range"]))
events, cancel = client.watch_prefix(prefix)
client.put(prefix + "b", "4")
lease = client.lease(60)
client.put(prefix + "leased", "5", lease=lease)
check("lease", (0 < lease.ttl() <= 60, lease.keys(), lease.refresh() > 0), (True, [(prefix + "leased").encode()], True))
lease.revoke()
check("prefix", [value for value, _ in client.get_prefix(prefix)], [b"3", b"4"])
# The range first: whoever asks for one event more waits for it.
seen = [(event.get("type", "PUT"), event["kv"]["key"].decode().removeprefix(prefix)) for _, event in zip(range(3), events)]
check("events", seen, [("PUT", "b"), ("PUT", "leased"), ("DELETE", "leased")])
cancel()
with client.lock(prefix + "lock", ttl=10) as lock:
    check("lock", lock.is_acquired(), True)
check("delete", client.delete(prefix + "b"), True)
check("deleted", client.get(prefix + "b"), [])
check("delete of the prefix", client.delete_prefix(prefix), True)
check("rest", client.get_prefix(prefix), [])
print("python: etcd3gw works")
