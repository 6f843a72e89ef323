// The store of live runs: what is active and what fails, kept current for whichever view is open. It feeds the
// title and icon of the tab at all times, and Today when that is shown.

import { get } from "./api.js";
import { setFailing } from "./badge.js";
import { oneAtATime } from "./dom.js";
import { subscribe } from "./live.js";
import { ACTIVE } from "./times.js";

const MOST = 2000; // runs of a kind that are kept; an installation has seldom more at once
const DAY = 86_400_000; // ms

export const active = new Map(); // run ID -> summary of what waits, starts, runs or stops
export const failing = new Map(); // instance -> summary of its latest run, where that failed within a day

const watchers = new Set();

/** The instance of a run: its job and args. */
export const instanceOf = (run) => JSON.stringify([run.job_id, run.args]);

/** Be called whenever something here has changed; answers a function that ends it. */
export function watch(does) {
  watchers.add(does);
  return () => watchers.delete(does);
}

let changed = false;

function tell() {
  if (!changed) return;
  changed = false;
  setFailing(failing.size);
  for (const does of [...watchers]) does();
}

function put(run) {
  if (ACTIVE.includes(run.state)) {
    if (active.has(run.run_id) || active.size < MOST) active.set(run.run_id, run);
    changed = true;
    return;
  }
  changed = active.delete(run.run_id) || changed;
  const instance = instanceOf(run);
  if (run.state === "failure" || run.state === "error") {
    failing.set(instance, run);
    if (failing.size > MOST) failing.delete(failing.keys().next().value);
    changed = true;
  } else if (run.state === "success" || failing.get(instance)?.run_id === run.run_id) {
    changed = failing.delete(instance) || changed;
  }
}

const load = oneAtATime(async () => {
  try {
    const [now, failed] = await Promise.all([
      get("/search/runs", { state: ACTIVE, limit: 1000 }),
      get("/search/runs", { state: ["failure", "error"], since: new Date(Date.now() - DAY).toISOString(), limit: 200 }),
    ]);
    active.clear();
    failing.clear();
    for (const run of Object.values(now.runs)) put(run);
    for (const run of Object.values(failed.runs).reverse()) put(run);
    changed = true;
    tell();
  } catch (error) {
    console.warn(error.message); // the live connection says that the server is away, and asks again
  }
});

export function startBoard() {
  subscribe({
    message(message) {
      if (message.type === "run_transition") put(message.run_summary);
      else if (message.type === "run_delete") changed = active.delete(message.run_id) || changed;
    },
    frame: tell,
    refresh: load,
  });
  load();
}
