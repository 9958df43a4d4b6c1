'use strict';
// Draws what /ui/events tells once a second. Names come from other machines: they are only ever set as text.

const SAMPLES_MAX = 180; // three minutes
const SAMPLES_DRAWN_MIN = 30; // a drawing that has just begun is not stretched beyond this
const WIDTH = 180; // of a drawing
const SILENCE_MAX_MS = 5000; // a stream that says nothing is opened anew
const HIDDEN_MAX_MS = 60000; // nobody looks: the stream is given back
const CHANGES_MAX = 12;

const $ = (id) => document.getElementById(id);
const made = (id) => $(id).content.firstElementChild.cloneNode(true);
const text = (element, value) => { if (element.textContent !== value) element.textContent = value; };

// Numbers as people read them.
const whole = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });
const count = (n) => {
  if (n < 10000) return whole.format(n);
  for (const unit of ['k', 'M', 'G', 'T']) {
    n /= 1000;
    if (n < 1000) return n.toFixed(n < 100 ? 1 : 0) + unit;
  }
  return n.toFixed(0) + 'P';
};
const rate = (n) => (n > 0 && n < 10 ? n.toFixed(1) : count(n));
const bytes = (n) => {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; unit += 1) n /= 1024;
  return `${unit > 0 && n < 10 ? n.toFixed(1) : n.toFixed(0)} ${units[unit]}`;
};
const plural = (n, one, many = `${one}s`) => `${whole.format(n)} ${n === 1 ? one : many}`;

// The last minutes of one figure.
class Series {
  samples = [];

  add(value) {
    this.samples.push(value);
    if (this.samples.length > SAMPLES_MAX) this.samples.shift();
  }

  // Of the last three seconds: the nodes are not asked in the same instant.
  get now() {
    const last = this.samples.slice(-3);
    return last.length ? last.reduce((sum, value) => sum + value, 0) / last.length : 0;
  }

  draw(svg) {
    const top = Math.max(1e-9, ...this.samples);
    const step = WIDTH / (Math.max(SAMPLES_DRAWN_MIN, this.samples.length) - 1);
    // The newest stands at the right edge.
    const x = (at) => (WIDTH - (this.samples.length - 1 - at) * step).toFixed(1);
    const points = this.samples.map((value, at) => `${x(at)},${(38 - (35 * value) / top).toFixed(1)}`);
    const [area, line] = svg.querySelectorAll('path');
    const path = points.length > 1 ? `M${points.join('L')}` : '';
    line.setAttribute('d', path);
    area.setAttribute('d', path && `${path}V40H${x(0)}Z`);
  }
}

const tiles = [
  ['writes', 'Writes per second'],
  ['events', 'Watch events per second'],
  ['watchers', 'Watchers'],
  ['lag', 'Revisions that the slowest stream lacks'],
].map(([name, title]) => {
  const element = made('tile');
  element.id = `tile-${name}`;
  text(element.querySelector('h2'), title);
  $('tiles').append(element);
  return { name, element, series: new Series() };
});

function showTile(name, sample, shown, note) {
  const { element, series } = tiles.find((tile) => tile.name === name);
  if (sample !== null) series.add(sample);
  text(element.querySelector('.value'), shown(series.now, sample));
  text(element.querySelector('.note'), note);
  series.draw(element.querySelector('svg'));
}

// What was drawn last, and each node's row and series by id.
let before = null;
const rows = new Map();

function show(frame) {
  // Another process, or the first frame: there is nothing to take a difference from.
  const seconds = before ? (frame.at_ms - before.at_ms) / 1000 : 0;
  const last = seconds > 0 && before.served_by === frame.served_by ? before : null;
  const perSecond = (now, then) => Math.max(0, now - then) / seconds;
  const earlier = new Map((last ? last.nodes : []).map((node) => [node.id, node]));
  let events = last ? 0 : null;
  for (const node of frame.nodes) {
    const then = earlier.get(node.id);
    node.rate = then && isKnown(then) && isKnown(node) ? perSecond(node.events, then.events) : null;
    if (last) events += node.rate ?? 0;
  }
  showFacts(frame);
  const writes = last && frame.revision && last.revision ? perSecond(frame.revision, last.revision) : null;
  showTiles(frame, writes, events);
  showNodes(frame);
  showPrefixes(frame.prefixes);
  showSlowest(frame.slowest);
  if (before) showChanges(before, frame);
  before = frame;
}

const isKnown = (node) => node.state !== 'no answer';
const leaderOf = (frame) => frame.nodes.find((node) => node.is_leader);
const sum = (nodes, field) => nodes.reduce((total, node) => total + node[field], 0);

function showFacts(frame) {
  const leader = leaderOf(frame);
  text($('leader'), leader ? leader.name || leader.id : frame.leader || 'none');
  text($('term'), whole.format(frame.term));
  text($('revision'), whole.format(frame.revision));
  text($('cluster'), frame.cluster_id || 'not known yet');
  text($('server'), frame.served_by);
  let alarm = '';
  if (!frame.nodes.length) alarm = 'No node answers. Asking again every second.';
  else if (!frame.leader) alarm = 'No leader: writes and linearizable reads wait for an election.';
  else if (leader && !isKnown(leader)) alarm = `The leader, ${leader.name || leader.id}, does not answer.`;
  text($('alarm'), alarm);
  $('alarm').hidden = !alarm;
  document.title = `${alarm ? '⚠ ' : ''}${leader ? leader.name : 'no leader'} · tailwater`;
}

function showTiles(frame, writes, events) {
  const members = frame.nodes.filter((node) => node.kind === 'member');
  const watchers = sum(frame.nodes, 'watchers');
  const [behind, streams] = [sum(frame.nodes, 'watchers_behind'), sum(frame.nodes, 'streams')];
  const lag = Math.max(0, ...frame.nodes.map((node) => node.stream_lag_revisions));
  const keys = Math.max(0, ...frame.nodes.map((node) => node.keys));
  showTile('writes', writes, rate, keys ? `${count(keys)} keys` : `revision ${whole.format(frame.revision)}`);
  const mean = tiles[0].series.now;
  showTile('events', events, rate, mean && tiles[1].series.now ? `${(tiles[1].series.now / mean).toFixed(1)} for each write` : 'sent by all nodes');
  showTile('watchers', watchers, (_, now) => count(now), `on ${plural(streams, 'stream')}, ${behind ? count(behind) : 'none'} catching up`);
  showTile('lag', lag, (_, now) => count(now), `${bytes(sum(frame.nodes, 'held_bytes'))} held for clients`);
  const fanouts = frame.nodes.length - members.length;
  const silent = frame.nodes.filter((node) => !isKnown(node)).length;
  const parts = [plural(members.length, 'member'), plural(fanouts, 'fanout')];
  text($('census'), parts.concat(silent ? [`${whole.format(silent)} without an answer`] : []).join(', '));
}

function showNodes(frame) {
  const body = $('nodes').tBodies[0];
  const mean = tiles[0].series.now;
  const here = new Set(frame.nodes.map((node) => node.id));
  for (const [id, { row }] of rows) {
    if (!here.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  frame.nodes.forEach((node, at) => {
    if (!rows.has(node.id)) rows.set(node.id, { row: made('node'), series: new Series() });
    const { row, series } = rows.get(node.id);
    // Moved only where it must: a row that is looked at stays.
    if (body.children[at] !== row) body.insertBefore(row, body.children[at] || null);
    showNode(row, series, node, mean);
  });
}

function showNode(row, series, node, writesPerSecond) {
  const known = isKnown(node);
  const cell = (name, value) => text(row.querySelector(`.${name}`), known ? value : '–');
  Object.assign(row.dataset, { node: node.name, kind: node.kind, state: node.state, leader: node.is_leader });
  row.classList.toggle('gone', !known);
  row.title = `id ${node.id}${node.version ? `, version ${node.version}` : ''}`;
  text(row.querySelector('.branch'), node.depth ? `${'  '.repeat(node.depth - 1)}└ ` : '');
  text(row.querySelector('.name'), node.name || node.id);
  text(row.querySelector('.kind'), node.is_partial ? `${node.kind} of some prefixes` : node.kind);
  text(row.querySelector('.state'), node.state);
  cell('lag', count(node.lag_revisions));
  // The nodes are asked one after the other, while others write: a second of writes is worth a look, not less.
  const late = known ? node.lag_revisions / Math.max(1, writesPerSecond) : 0;
  row.querySelector('.lag').className = `number lag${late > 5 ? ' bad' : late > 1 ? ' warn' : ''}`;
  const unheard = node.depth > 0 && node.core_age_ms > 2000;
  cell('heard', node.depth ? (node.core_age_ms < 100000 ? `${whole.format(node.core_age_ms)} ms` : 'long ago') : '–');
  row.querySelector('.heard').className = `number heard${unheard ? ' warn' : ''}`;
  cell('streams', count(node.streams));
  cell('watchers', count(node.watchers));
  cell('behind', count(node.watchers_behind));
  if (node.rate !== null || !known) series.add(node.rate ?? 0);
  cell('rate', rate(series.now));
  series.draw(row.querySelector('svg'));
  const meter = row.querySelector('meter');
  meter.hidden = !known || !node.held_bytes_max;
  meter.value = node.held_bytes_max ? node.held_bytes / node.held_bytes_max : 0;
  meter.title = `${bytes(node.held_bytes)} of ${bytes(node.held_bytes_max)}`;
  text(row.querySelector('.held span'), known && node.held_bytes_max ? bytes(node.held_bytes) : '–');
  cell('keys', node.keys ? count(node.keys) : '–');
  cell('memory', node.resident_bytes ? bytes(node.resident_bytes) : '–');
  text(row.querySelector('.url'), node.client_url || 'none');
}

// Rows of a list: label, note, figure, and the part of the largest figure that the bar shows.
function showBars(list, bars) {
  while (list.children.length > bars.length) list.lastElementChild.remove();
  while (list.children.length < bars.length) list.append(made('bar'));
  const largest = Math.max(1, ...bars.map((bar) => bar.value));
  bars.forEach(({ label, note, value }, at) => {
    const item = list.children[at];
    text(item.querySelector('.label'), label);
    item.querySelector('.label').title = label;
    text(item.querySelector('.note'), note);
    text(item.querySelector('b'), count(value));
    item.querySelector('i').style.width = `${(100 * value) / largest}%`;
  });
}

function showPrefixes(prefixes) {
  const bars = (prefixes || []).map(({ prefix, watchers }) => ({ label: prefix || '(every key)', note: '', value: watchers }));
  showBars($('prefixes'), bars);
  const hidden = 'Prefixes are shown on the client port of a cluster without users, where everybody may read every key.';
  text($('prefixes-note'), prefixes ? (bars.length ? '' : 'Nobody watches.') : hidden);
}

function showSlowest(slowest) {
  const bars = slowest.map(({ node, peer, range, backlog_revisions, held_bytes }) => ({
    label: range || node,
    note: [range ? node : '', peer ? `to ${peer}` : '', `${bytes(held_bytes)} held`].filter(Boolean).join(' · '),
    value: backlog_revisions,
  }));
  showBars($('slowest'), bars);
  text($('slowest-note'), bars.length ? 'Revisions that each has yet to be sent.' : 'Every stream has what there is.');
}

function showChanges(was, is) {
  const [old, now] = [leaderOf(was), leaderOf(is)];
  if (was.leader !== is.leader) {
    if (now) note(`${now.name || now.id} leads${old ? `, after ${old.name || old.id}` : ''} (term ${is.term})`, true);
    else note('nobody leads', true);
  }
  const known = new Map(was.nodes.map((node) => [node.id, node]));
  for (const node of is.nodes) {
    const then = known.get(node.id);
    known.delete(node.id);
    const name = node.name || node.id;
    if (!then) note(`${node.kind} ${name} came`);
    else if (isKnown(then) && !isKnown(node)) note(`${node.kind} ${name} does not answer`, true);
    else if (!isKnown(then) && isKnown(node)) note(`${node.kind} ${name} answers again`);
    else if (then.state !== node.state && node.state === 'not ready') note(`${node.kind} ${name} is not ready`, true);
  }
  for (const node of known.values()) note(`${node.kind} ${node.name || node.id} is gone`);
}

function note(what, isImportant = false) {
  const item = document.createElement('li');
  const time = document.createElement('time');
  time.textContent = new Date().toLocaleTimeString([], { hour12: false });
  item.classList.toggle('important', isImportant);
  item.append(time, what);
  $('changes').prepend(item);
  if ($('changes').children.length > CHANGES_MAX) $('changes').lastElementChild.remove();
}

// The stream. A browser comes again by itself when it was cut off, but not when it was refused, nor when nothing is said.
let source = null;
let heard = performance.now();
let lostAt = null;
let hiddenAt = null;

function connect() {
  disconnect();
  heard = performance.now();
  source = new EventSource('ui/events');
  source.onmessage = (message) => {
    heard = performance.now();
    if (lostAt !== null) note('connected again');
    lostAt = null;
    $('link').classList.toggle('odd');
    showLink('live', 'live');
    show(JSON.parse(message.data));
  };
  source.onerror = () => lose();
}

function disconnect() {
  if (source) source.close();
  source = null;
}

function lose() {
  if (lostAt === null) {
    lostAt = performance.now();
    if (before) note('no word from this node; trying again');
  }
  const seconds = Math.round((performance.now() - lostAt) / 1000);
  showLink('lost', `reconnecting${seconds > 1 ? `, ${seconds} s` : ''}`);
}

function showLink(state, words) {
  $('link').dataset.state = state;
  text($('link'), words);
  document.querySelector('main').classList.toggle('stale', state === 'lost' && before !== null);
}

setInterval(() => {
  if (document.hidden) {
    hiddenAt ??= performance.now();
    if (source && performance.now() - hiddenAt > HIDDEN_MAX_MS) disconnect();
    return;
  }
  hiddenAt = null;
  if (lostAt !== null) lose();
  const isRefused = source && source.readyState === EventSource.CLOSED;
  const isSilent = performance.now() - heard > SILENCE_MAX_MS;
  if (!source || isSilent || (isRefused && performance.now() - heard > 2000)) {
    if (source) lose();
    connect();
  }
}, 1000);
document.addEventListener('visibilitychange', () => { if (!document.hidden && !source) connect(); });

note('opened');
connect();
