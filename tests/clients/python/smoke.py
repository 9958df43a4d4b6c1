"""Smoke test of a server with aetcd. The server is named by TAILWATER_ENDPOINTS (host:port)."""

import asyncio
import os
import sys
import uuid

import aetcd


def check(what, got, want):
    if got != want:
        sys.exit(f"{what} is {got!r}, want {want!r}")


async def main():
    endpoint = os.environ.get("TAILWATER_ENDPOINTS")
    if not endpoint:
        sys.exit("set TAILWATER_ENDPOINTS to the server's client address, for example 127.0.0.1:2379")
    host, port = endpoint.split(",")[0].removeprefix("http://").rsplit(":", 1)
    prefix = f"python/{uuid.uuid4()}/".encode()
    key = prefix + b"a"
    async with aetcd.Client(host=host, port=int(port)) as client:
        await client.put(key, b"1")
        check("value", (await client.get(key)).value, b"1")
        await client.put(prefix + b"b", b"2")
        check("keys", [kv.key for kv in await client.get_prefix(prefix)], [key, prefix + b"b"])
        check("missing key", await client.get(prefix + b"none"), None)

        watch = await client.watch_prefix(prefix)
        done, _ = await client.transaction(
            compare=[client.transactions.value(key) == b"1"],
            success=[client.transactions.put(key, b"3")],
            failure=[],
        )
        check("transaction", done, True)
        lease = await client.lease(60)
        await client.put(prefix + b"leased", b"4", lease=lease)
        await lease.revoke()
        check("deleted", await client.delete(prefix + b"b") is not None, True)
        events = []
        async for event in watch:
            events.append((event.kind, event.kv.key.removeprefix(prefix), event.kv.value))
            if len(events) == 4:
                break
        check("events", events, [
            ("PUT", b"a", b"3"), ("PUT", b"leased", b"4"), ("DELETE", b"leased", b""), ("DELETE", b"b", b""),
        ])
        await watch.cancel()
        check("rest", [kv.value for kv in await client.get_prefix(prefix)], [b"3"])


asyncio.run(asyncio.wait_for(main(), timeout=10))
print("python: aetcd works")
