// A headless Chromium, driven by the DevTools protocol over a pipe: no port, no package.
'use strict';

const { spawn } = require('node:child_process');

const PATIENCE_MS = 60000;

class Browser {
  // `profile` is a directory of its own.
  constructor(binary, profile) {
    const flags = ['--headless=new', '--remote-debugging-pipe', `--user-data-dir=${profile}`, '--no-first-run',
      '--disable-gpu', '--disable-extensions', '--disable-background-networking', '--disable-component-update',
      '--disable-dev-shm-usage', '--hide-scrollbars', '--window-size=1440,1000'];
    // Root has no sandbox to give.
    if (process.getuid() === 0) flags.push('--no-sandbox');
    this.process = spawn(binary, [...flags, 'about:blank'], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
    this.process.on('exit', () => this.fail(new Error('the browser has ended')));
    this.process.on('error', (error) => this.fail(error));
    [, , , this.input, this.output] = this.process.stdio;
    this.input.on('error', (error) => this.fail(error));
    this.waiting = new Map();
    this.listeners = [];
    this.lastId = 0;
    let rest = '';
    this.output.setEncoding('utf8').on('data', (data) => {
      const messages = (rest + data).split('\0');
      rest = messages.pop();
      for (const message of messages) this.take(JSON.parse(message));
    });
  }

  take(message) {
    const waiting = this.waiting.get(message.id);
    if (!waiting) {
      for (const listener of this.listeners) listener(message);
      return;
    }
    this.waiting.delete(message.id);
    if (message.error) waiting.reject(new Error(`${waiting.method}: ${message.error.message}`));
    else waiting.resolve(message.result);
  }

  fail(error) {
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
    this.failed = error;
  }

  send(method, params = {}, sessionId = undefined) {
    if (this.failed) return Promise.reject(this.failed);
    this.lastId += 1;
    const id = this.lastId;
    this.input.write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${method}: no answer from the browser`)), PATIENCE_MS);
      const settled = (settle) => (value) => { clearTimeout(timer); settle(value); };
      this.waiting.set(id, { method, resolve: settled(resolve), reject: settled(reject) });
    });
  }

  // A tab; what it asks for and complains about is noted from the beginning.
  async open() {
    const { targetId } = await this.send('Target.createTarget', { url: 'about:blank' });
    const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
    const tab = new Tab(this, targetId, sessionId);
    for (const domain of ['Page', 'Runtime', 'Log', 'Network']) await tab.send(`${domain}.enable`);
    return tab;
  }

  async close() {
    const ended = new Promise((resolve) => { this.process.once('exit', resolve); });
    await this.send('Browser.close').catch(() => this.process.kill('SIGKILL'));
    const timer = setTimeout(() => this.process.kill('SIGKILL'), 5000);
    await ended;
    clearTimeout(timer);
  }
}

class Tab {
  constructor(browser, targetId, sessionId) {
    Object.assign(this, { browser, targetId, sessionId, requests: [], complaints: [] });
    browser.listeners.push(({ sessionId: of, method, params }) => {
      if (of !== sessionId) return;
      if (method === 'Network.requestWillBeSent') this.requests.push(params.request.url);
      if (method === 'Runtime.exceptionThrown') this.complaints.push(params.exceptionDetails.exception?.description);
      // Also a breach of the content security policy.
      if (method === 'Log.entryAdded' && params.entry.level === 'error') this.complaints.push(params.entry.text);
    });
  }

  send(method, params) { return this.browser.send(method, params, this.sessionId); }

  async evaluate(expression) {
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  // Evaluates until it is true; how long that took in milliseconds.
  async until(what, expression, patienceMs = PATIENCE_MS) {
    const begun = performance.now();
    for (;;) {
      const isSo = await this.evaluate(expression).catch(() => false);
      const took = performance.now() - begun;
      if (isSo === true) return took;
      if (took > patienceMs) {
        const shown = await this.evaluate('document.body.innerText').catch(String);
        throw new Error(`not in ${patienceMs} ms: ${what}; the page says:\n${shown}`);
      }
      await new Promise((resolve) => { setTimeout(resolve, 20); });
    }
  }

  async picture(scheme, width, height) {
    await this.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: scheme }] });
    await this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false });
    await new Promise((resolve) => { setTimeout(resolve, 600); });
    const { data } = await this.send('Page.captureScreenshot', { format: 'png', captureBeyondViewport: true });
    return Buffer.from(data, 'base64');
  }

  close() { return this.browser.send('Target.closeTarget', { targetId: this.targetId }); }
}

module.exports = { Browser };
