// The live connection: one WebSocket of changes for whichever view is open. It comes back by itself, and
// then everybody is asked to fetch anew, since what happened meanwhile was not told.

import { API, call } from "./api.js";
import { byId, el, fill } from "./dom.js";
import { showClock } from "./times.js";

const FIRST_WAIT = 500; // ms
const MOST_WAIT = 15_000; // ms
const ASLEEP = 20_000; // ms between two ticks after which the machine has slept, and its connections with it

/** A WebSocket that comes back by itself until it is closed. `open()` is called on each connection,
 *  `message(data)` for each frame, `closed(code, wait)` when one is lost. `address` may be a function. */
export class Socket {
  constructor(address, { open = () => {}, message, closed = () => {} }) {
    this.address = address;
    this.does = { open, message, closed };
    this.wait = FIRST_WAIT;
    this.ended = false;
    this.connect();
  }

  connect() {
    clearTimeout(this.timer);
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const address = typeof this.address === "function" ? this.address() : this.address;
    const socket = new WebSocket(`${scheme}://${location.host}${API}${address}`);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.wait = FIRST_WAIT;
      this.does.open();
    };
    socket.onmessage = (event) => {
      if (!this.ended && this.socket === socket) this.does.message(event.data);
    };
    socket.onclose = (event) => {
      if (this.ended || this.socket !== socket) return;
      const wait = this.wait * (0.75 + Math.random() / 2);
      this.does.closed(event.code, wait);
      if (event.code === 1000) return; // the server has no more to say
      this.timer = setTimeout(() => this.connect(), wait);
      this.wait = Math.min(this.wait * 2, MOST_WAIT);
    };
  }

  /** Connect at once: the wait is over, or the connection is not to be trusted any more. */
  again() {
    if (this.ended) return;
    const old = this.socket;
    this.wait = FIRST_WAIT;
    this.connect();
    old.close();
  }

  close() {
    this.ended = true;
    clearTimeout(this.timer);
    this.socket.close();
  }
}

const listeners = new Set();
let summary = null;
let lost = null; // when the connection was lost
let before = false; // whether there was one
let next = 0; // when it is tried again

/** Be told of changes: `message(m)` for each message of the summary stream, `frame()` after those that came
 *  together, `refresh()` when some were missed. Answers a function that ends it. */
export function subscribe(does) {
  listeners.add(does);
  return () => listeners.delete(does);
}

export const isLive = () => before && lost === null;

function tell(name, value) {
  for (const does of [...listeners]) {
    try {
      does[name]?.(value);
    } catch (error) {
      console.error(error);
    }
  }
}

function show() {
  const mark = byId("live");
  mark.dataset.state = lost !== null ? "stale" : before ? "live" : "connecting";
  const word = lost !== null ? "reconnecting" : before ? "live" : "connecting";
  if (mark.textContent !== word) mark.textContent = word;
  const bar = byId("stale");
  bar.hidden = lost === null;
  if (lost === null) return;
  const seconds = Math.max(0, Math.ceil((next - Date.now()) / 1000));
  if (!bar.firstChild) {
    const button = el("button", { type: "button", onclick: () => summary.again() }, "Try now");
    bar.append(el("span", { role: "status" }), el("span", { class: "soft" }), button);
  }
  const since = `The server cannot be reached. What is shown was true at ${showClock(lost)}.`;
  if (bar.firstChild.textContent !== since) fill(bar.firstChild, since);
  fill(bar.children[1], seconds ? `Trying again in ${seconds} s.` : "Trying again…");
}

export function startLive() {
  summary = new Socket("/summary", {
    open() {
      const missed = before;
      before = true;
      lost = null;
      show();
      document.dispatchEvent(new Event("apsis-live"));
      if (missed) tell("refresh");
    },
    closed(code, wait) {
      lost ??= new Date();
      next = Date.now() + wait;
      show();
      document.dispatchEvent(new Event("apsis-live"));
    },
    message(data) {
      for (const message of JSON.parse(data)) tell("message", message);
      tell("frame");
    },
  });
  let last = Date.now();
  setInterval(() => {
    const slept = Date.now() - last > ASLEEP && document.visibilityState === "visible";
    last = Date.now();
    if (slept) verify();
    else if (lost !== null) show();
  }, 1000);
  window.addEventListener("online", () => summary.again());
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") verify();
  });
  show();
}

/** A tab that was asleep may hold a connection whose other end is gone: ask, and do not wait long. */
async function verify() {
  if (lost !== null) {
    summary.again();
    return;
  }
  try {
    await call("GET", `${API}/alive`, undefined, { signal: AbortSignal.timeout(5000) });
    // Timers of hidden tabs run once a minute at least, connections live on: nothing was missed.
    if (summary.socket.readyState !== WebSocket.OPEN) summary.again();
  } catch {
    summary.again();
  }
}
