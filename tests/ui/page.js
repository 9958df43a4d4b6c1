// The page as somebody sees it who runs a cluster; run.sh says what is needed.
'use strict';

const assert = require('node:assert');
const { mkdtempSync, writeFileSync } = require('node:fs');
const { tmpdir } = require('node:os');
const path = require('node:path');
const { Browser } = require('./browser.js');
const { Cluster, sleep } = require('./cluster.js');

const LOAD_MAX_MS = Number(process.env.LOAD_MAX_MS ?? 1000);
// An election takes one to two seconds, and the page hears of it within another.
const LEADER_MAX_MS = 15000;

// Rows of the table as the page shows them.
const nodes = 'JSON.stringify([...document.querySelectorAll("#nodes tbody tr")].map((row) => ({ ...row.dataset })))';
const rows = (condition) => `document.querySelectorAll('#nodes tbody tr${condition}').length`;
const isWhole = `${rows('[data-kind=member]')} === 3 && ${rows('')} === 7 && ${rows('[data-state="no answer"]')} === 0`
  + ` && ${rows('[data-leader=true]')} === 1`;

async function main(cluster, browser) {
  await cluster.start();
  const fanouts = ['relay', 'f1', 'f2', 'f3'];
  cluster.load(fanouts, 'kube', '--nodes=300', '--api-servers=4', '--pods-per-second=5', '--seconds=600');
  for (const name of ['f1', 'f3']) cluster.stall(name, '/registry/');

  // Looked at from a fanout, so that it outlives the leader.
  const origin = `http://127.0.0.1:${cluster.port('f1')}`;
  let tab = await browser.open();
  const load = async (again) => {
    // Nobody looks meanwhile: each load begins with a survey of its own.
    if (again) {
      await tab.close();
      await sleep(1500);
      tab = await browser.open();
    }
    const begun = performance.now();
    await tab.send('Page.navigate', { url: `${origin}/ui` });
    await tab.until('all nodes', isWhole);
    return performance.now() - begun;
  };
  // The best of three: what else the machine does is not the page's.
  const loads = [await load(false), await load(true), await load(true)].map(Math.round);
  console.log(`3 members, 1 leader, 4 fanouts are shown ${loads.join(', ')} ms after the page was asked for`);
  assert.ok(Math.min(...loads) < LOAD_MAX_MS, `loaded in ${loads} ms`);
  // A mark that a reload would wipe away.
  await tab.evaluate('window.isTheSame = true');

  const tree = JSON.parse(await tab.evaluate(nodes));
  const kinds = Object.fromEntries(tree.map(({ node, kind }) => [node, kind]));
  assert.deepStrictEqual(kinds, { m1: 'member', m2: 'member', m3: 'member', relay: 'relay', f1: 'fanout', f2: 'fanout', f3: 'fanout' });
  const names = tree.map(({ node }) => node);
  assert.strictEqual(names.indexOf('f3'), names.indexOf('relay') + 1, `f3 stands below the relay: ${names}`);
  const leader = await cluster.leader();
  assert.deepStrictEqual(tree.filter((node) => node.leader === 'true').map(({ node, state }) => [node, state]), [[leader, 'leader']]);
  assert.strictEqual(await tab.evaluate('document.getElementById("leader").textContent'), leader);

  // Rates, prefixes and slow streams come with the load.
  const number = (id) => `parseFloat(document.querySelector('#tile-${id} .value').textContent)`;
  await tab.until('writes and events', `${number('writes')} > 0 && ${number('events')} > 0 && ${number('watchers')} > 0`);
  await tab.until('prefixes', 'document.querySelectorAll("#prefixes li").length > 3');
  await tab.until('slow streams', 'document.querySelectorAll("#slowest li").length > 0 && /registry/.test(document.getElementById("slowest").textContent)');
  await sleep(Number(process.env.WATCH_MS ?? 15000));
  const save = async (name, ...how) => writeFileSync(path.join(process.env.PICTURES, name), await tab.picture(...how));
  await save('light.png', 'light', 1440, 1000);
  await save('dark.png', 'dark', 1440, 1000);
  await save('narrow.png', 'dark', 420, 1600);

  // The port for metrics shows the same without keys and clients.
  const plain = await browser.open();
  await plain.send('Page.navigate', { url: `http://127.0.0.1:${cluster.nodes.get('f1').metrics}/ui` });
  await plain.until('all nodes on the port for metrics', isWhole);
  await plain.until('slow streams there', 'document.querySelectorAll("#slowest li").length > 0');
  const words = await plain.evaluate('document.documentElement.outerHTML.replace(document.querySelector("script").outerHTML, "")');
  assert.ok(!/\/registry\/| to 127\.0\.0\.1:/.test(words), 'the port for metrics shows a key or a client');
  await plain.close();

  // The leader dies: the next one is shown, by the page that is open.
  const killed = performance.now();
  await cluster.kill(leader);
  const after = `!window.isTheSame ? 'reloaded' : ${rows('[data-leader=true][data-state=leader]')} === 1`
    + ` && document.querySelector('#nodes tr[data-leader=true]').dataset.node !== '${leader}'`
    + ` && document.querySelector('#nodes tr[data-node="${leader}"]').dataset.state === 'no answer' && document.getElementById('alarm').hidden`;
  await tab.until('the next leader', after, LEADER_MAX_MS);
  const next = await tab.evaluate('document.getElementById("leader").textContent');
  console.log(`${next} leads after ${leader}: shown ${(performance.now() - killed).toFixed(0)} ms after the kill`);
  assert.strictEqual(next, await cluster.leader());
  await tab.until('fanouts below those that live', `${rows(':not([data-kind=member])')} === 4 && ${rows('[data-kind=member]')} === 3`
    + ` && ${rows(':not([data-kind=member])[data-state=ready]')} === 4`);
  assert.match(await tab.evaluate('document.getElementById("changes").textContent'), new RegExp(`${next} leads`));
  await save('after.png', 'light', 1440, 1000);

  // Its own node restarts: it finds it again without a reload.
  const f1 = cluster.nodes.get('f1');
  await cluster.kill('f1');
  await tab.until('that the stream was lost', 'document.getElementById("link").dataset.state === "lost"');
  cluster.spawn(f1, f1.process.spawnargs.slice(-2));
  await tab.until('that it is back', 'document.getElementById("link").dataset.state === "live" && window.isTheSame');
  assert.ok(tab.requests.length >= 3, `${tab.requests}`);
  for (const url of tab.requests) assert.ok(url.startsWith(`${origin}/ui`) || url.startsWith('data:'), `the page asked for ${url}`);
  const complaints = tab.complaints.concat(plain.complaints).filter((text) => !/ERR_(CONNECTION_REFUSED|INCOMPLETE_CHUNKED|CONNECTION_RESET|EMPTY_RESPONSE)/.test(text));
  assert.deepStrictEqual(complaints, []);
}

async function run() {
  const home = mkdtempSync(path.join(tmpdir(), 'tailwater-ui-'));
  const cluster = new Cluster(process.env.TAILWATER_BIN, home);
  const browser = new Browser(process.env.CHROMIUM, path.join(home, 'profile'));
  try {
    await main(cluster, browser);
    console.log(`passed: the page /ui (pictures in ${process.env.PICTURES})`);
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  }
  await browser.close().catch(() => {});
  cluster.stop();
}

run();
