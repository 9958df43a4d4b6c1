// Three members, four fanouts (one behind another) and load on them, as processes on localhost.
'use strict';

const { spawn, execFile } = require('node:child_process');
const { openSync, readFileSync, rmSync } = require('node:fs');
const net = require('node:net');
const path = require('node:path');

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// Below those that the kernel hands out by itself; nobody gets one twice.
const given = new Set();
async function freePort() {
  for (;;) {
    const port = 24000 + Math.floor(Math.random() * 1000);
    if (given.has(port)) continue;
    given.add(port);
    const server = net.createServer();
    const isFree = await new Promise((resolve) => {
      server.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => resolve(true));
    });
    if (isFree) {
      await new Promise((resolve) => { server.close(resolve); });
      return port;
    }
  }
}

class Cluster {
  constructor(binary, home) {
    Object.assign(this, { binary, home, nodes: new Map(), loads: [], stalled: [] });
  }

  async start() {
    const names = ['m1', 'm2', 'm3'];
    const members = [];
    for (const name of names) members.push({ name, client: await freePort(), peer: await freePort(), metrics: await freePort() });
    const group = members.map(({ name, peer }) => `${name}=http://127.0.0.1:${peer}`).join(',');
    for (const member of members) {
      this.spawn(member, [`--data-dir=${path.join(this.home, member.name)}`, `--initial-cluster=${group}`,
        `--listen-peer-urls=http://127.0.0.1:${member.peer}`, `--initial-advertise-peer-urls=http://127.0.0.1:${member.peer}`]);
    }
    await this.ready(names);
    const peers = members.map(({ peer }) => `http://127.0.0.1:${peer}`).join(',');
    const relayPeer = await freePort();
    const relayUrl = `http://127.0.0.1:${relayPeer}`;
    for (const [name, upstream, more] of [['relay', peers, [`--listen-peer-urls=${relayUrl}`]], ['f1', peers, []],
      ['f2', peers, ['--prefixes=/registry/']], ['f3', relayUrl, []]]) {
      const fanout = { name, client: await freePort(), metrics: await freePort() };
      this.spawn(fanout, ['--roles=fanout,gateway', `--upstream=${upstream}`, ...more]);
      if (name === 'relay') await this.ready([name]);
    }
    await this.ready(['f1', 'f2', 'f3']);
  }

  spawn(node, flags) {
    const [client, metrics] = [`http://127.0.0.1:${node.client}`, `http://127.0.0.1:${node.metrics}`];
    node.log = path.join(this.home, `${node.name}.log`);
    node.process = spawn(this.binary, ['serve', `--name=${node.name}`, `--listen-client-urls=${client}`,
      `--advertise-client-urls=${client}`, `--listen-metrics-urls=${metrics}`, ...flags],
    { stdio: ['ignore', 'ignore', openSync(node.log, 'w')] });
    this.nodes.set(node.name, node);
  }

  async ready(names) {
    for (const name of names) {
      const { log, process } = this.nodes.get(name);
      for (let tries = 0; !readFileSync(log, 'utf8').includes('ready to serve client requests'); tries += 1) {
        if (process.exitCode !== null || tries > 1200) throw new Error(`${name} did not start: ${readFileSync(log, 'utf8').slice(-2000)}`);
        await sleep(50);
      }
    }
  }

  port(name) { return this.nodes.get(name).client; }

  // `tailwater bench` on these nodes, until the end.
  load(names, ...flags) {
    const endpoints = names.map((name) => `http://127.0.0.1:${this.port(name)}`).join(',');
    this.loads.push(spawn(this.binary, ['bench', ...flags, `--endpoints=${endpoints}`], { stdio: 'ignore' }));
  }

  // A client that watches a prefix and never reads.
  stall(name, prefix) {
    const socket = net.connect(this.port(name), '127.0.0.1');
    const base64 = (text) => Buffer.from(text).toString('base64');
    const end = prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1);
    const body = JSON.stringify({ create_request: { key: base64(prefix), range_end: base64(end) } });
    socket.write(`POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    socket.pause().on('error', () => {});
    this.stalled.push(socket);
  }

  // What the command says, which asks by another way than the page.
  status() {
    return new Promise((resolve, reject) => {
      const endpoints = ['m1', 'm2', 'm3', 'f1'].map((name) => `127.0.0.1:${this.port(name)}`).join(',');
      execFile(this.binary, ['status', `--endpoints=${endpoints}`, '-w', 'json'], (error, out) => (error ? reject(error) : resolve(JSON.parse(out))));
    });
  }

  async leader() {
    for (let tries = 0; tries < 600; tries += 1) {
      const leader = (await this.status()).nodes.find((node) => node.is_leader && node.answered);
      if (leader) return leader.node.name;
      await sleep(50);
    }
    throw new Error('nobody leads');
  }

  async kill(name) {
    const { process } = this.nodes.get(name);
    const ended = new Promise((resolve) => { process.once('exit', resolve); });
    process.kill('SIGKILL');
    await ended;
  }

  stop() {
    for (const socket of this.stalled) socket.destroy();
    for (const load of this.loads) load.kill('SIGKILL');
    for (const { process } of this.nodes.values()) process.kill('SIGKILL');
    rmSync(this.home, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  }
}

module.exports = { Cluster, sleep };
