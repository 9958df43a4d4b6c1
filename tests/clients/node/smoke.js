// Smoke test of a server with the etcd3 client. The server is named by TAILWATER_ENDPOINTS (host:port).
'use strict';

const assert = require('node:assert');
const { randomUUID } = require('node:crypto');
const { Etcd3 } = require('etcd3');

async function main(client, prefix) {
  const key = `${prefix}a`;
  await client.put(key).value('1');
  assert.strictEqual(await client.get(key).string(), '1');
  await client.put(`${prefix}b`).value('2');
  assert.deepStrictEqual(await client.getAll().prefix(prefix).strings(), { [key]: '1', [`${prefix}b`]: '2' });
  assert.strictEqual(await client.get(`${prefix}none`).string(), null);

  const events = [];
  const watcher = await client.watch().prefix(prefix).create();
  const complete = new Promise((resolve, reject) => {
    const note = (kind) => (kv) => {
      events.push(`${kind} ${kv.key.toString().slice(prefix.length)}`);
      if (events.length === 4) resolve();
    };
    watcher.on('put', note('put')).on('delete', note('delete')).on('error', reject);
  });
  const result = await client.if(key, 'Value', '==', '1').then(client.put(key).value('3')).commit();
  assert.strictEqual(result.succeeded, true);
  const lease = client.lease(60);
  await lease.put(`${prefix}leased`).value('4');
  await lease.revoke();
  await client.delete().key(`${prefix}b`);
  await complete;
  assert.deepStrictEqual(events, ['put a', 'put leased', 'delete leased', 'delete b']);
  await watcher.cancel();
  assert.deepStrictEqual(await client.getAll().prefix(prefix).strings(), { [key]: '3' });
}

const endpoint = process.env.TAILWATER_ENDPOINTS;
if (!endpoint) {
  console.error('set TAILWATER_ENDPOINTS to the server\'s client address, for example 127.0.0.1:2379');
  process.exit(1);
}
setTimeout(() => { console.error('not done after 10 s'); process.exit(1); }, 10_000).unref();
const client = new Etcd3({ hosts: endpoint.split(',')[0] });
main(client, `node/${randomUUID()}/`).then(
  () => { client.close(); console.log('node: etcd3 works'); process.exit(0); },
  (error) => { console.error(error); process.exit(1); },
);
