// The store of live runs: what fails, runs, waits and comes next, kept current for whichever view is open. It feeds
// the title and icon of the tab at all times, and Today when that is shown.

import { get } from "./api.js";
import { setFailing } from "./badge.js";
import { oneAtATime } from "./dom.js";
import { subscribe } from "./live.js";
import { ACTIVE } from "./times.js";

const MOST = 1000; // runs of a kind that are kept; beyond, they are only counted
const NEXT = 20; // starts to come that the server says; where one has begun, it is asked for another
const OFTEN = 3000; // ms between two questions for all of it
const SELDOM = 60_000; // ms after which it is asked for though nothing is known to have changed

export const board = {
  loaded: false,
  active: new Map(), // run ID -> summary of what waits, starts, runs or stops
  failing: new Map(), // instance -> summary of its latest run, where that failed within a day
  unlisted: { running: 0, waiting: 0, failing: 0 }, // how many more there are
  why: {}, // run ID -> what it waits for
  next: [], // starts to come
  typical: {}, // job ID -> seconds
  agents: { live: 0, draining: 0, lost: [] },
  ailments: [],
};

const watchers = new Set();

/** The instance of a run: its job and args. */
export const instanceOf = (run) => JSON.stringify([run.job_id, run.args]);

export const numberOf = (run) => Number(run.run_id.slice(1));
export const running = () => [...board.active.values()].filter((run) => run.state !== "waiting");
export const waiting = () => [...board.active.values()].filter((run) => run.state === "waiting");
export const late = () => [...board.active.values()].filter((run) => run.alarms?.length);

/** Be called whenever something here has changed; answers a function that ends it. */
export function watch(does) {
  watchers.add(does);
  return () => watchers.delete(does);
}

let changed = false;

function tell() {
  if (!changed) return;
  changed = false;
  setFailing(board.failing.size + board.unlisted.failing);
  for (const does of [...watchers]) does();
}

function put(run) {
  const { active, failing } = board;
  if (run.state !== "scheduled" && board.next.some((start) => start.run_id === run.run_id)) {
    board.next = board.next.filter((start) => start.run_id !== run.run_id);
    changed = true;
    if (board.next.length < NEXT) reloadSoon();
  }
  if (ACTIVE.includes(run.state)) {
    if (run.state === "waiting" && !active.has(run.run_id)) reloadSoon(); // why?
    if (active.has(run.run_id) || active.size < MOST) active.set(run.run_id, run);
    changed = true;
    return;
  }
  changed = active.delete(run.run_id) || changed;
  if (run.state === "scheduled" || run.state === "new") {
    if (board.next.length < NEXT || run.times.schedule < board.next.at(-1).time) reloadSoon();
    return;
  }
  const instance = instanceOf(run);
  const before = failing.get(instance);
  // Only a later run makes a failure good, or takes its place.
  if (before && numberOf(run) < numberOf(before)) return;
  if (run.state === "failure" || run.state === "error") {
    failing.delete(instance); // to the end: the newest
    failing.set(instance, run);
    if (failing.size > MOST) failing.delete(failing.keys().next().value);
    changed = true;
  } else if (run.state === "success" || before?.run_id === run.run_id) {
    changed = failing.delete(instance) || changed;
  }
}

const load = oneAtATime(async () => {
  try {
    const found = await get("/board");
    board.active = new Map([...found.running, ...found.waiting, ...found.alarmed].map((run) => [run.run_id, run]));
    board.failing = new Map(found.failing.reverse().map((run) => [instanceOf(run), run]));
    board.unlisted = {
      running: found.counts.running - found.running.length,
      waiting: found.counts.waiting - found.waiting.length,
      failing: found.counts.failing - found.failing.length,
    };
    for (const name of ["why", "next", "typical", "agents", "ailments"]) board[name] = found[name];
    board.loaded = changed = true;
    tell();
  } catch (error) {
    if (!board.loaded) console.warn(error.message); // the live connection says that the server is away
  }
});

let timer = null;
let asked = 0;

function reloadSoon() {
  if (timer !== null) return;
  timer = setTimeout(
    () => {
      timer = null;
      reload();
    },
    Math.max(300, asked + OFTEN - Date.now()),
  );
}

function reload() {
  asked = Date.now();
  return load();
}

export function startBoard() {
  subscribe({
    message(message) {
      if (message.type === "run_transition") put(message.run_summary);
      else if (message.type === "run_delete") changed = board.active.delete(message.run_id) || changed;
      else if (message.type.startsWith("agent")) reloadSoon();
    },
    frame: tell,
    refresh: reload,
  });
  setInterval(() => {
    if (document.visibilityState === "visible" && Date.now() - asked > SELDOM) reload();
  }, 5000);
  reload();
}
