// A list of runs, newest first, that fetches more on demand and follows changes.

import { get } from "./api.js";
import { notice } from "./dialogs.js";
import { el, fill } from "./dom.js";
import { alarmMarks, argsMark, chips, jobLink, runLink, stateMark, timeMark } from "./marks.js";
import { FINISHED, elapsed } from "./times.js";
import { table, td } from "./tables.js";

const PAGE = 100; // runs fetched at a time
const MOST = 1000; // rows; a page left open for a week must not fill up

/** `filters`: {q, job_id, label, states, order}. `job`: whether the job is a column. */
export function runsList(page, filters, { job = true } = {}) {
  const runs = new Map();
  const rows = new Map();
  let next = null;
  const heads = ["Run", "State", ...(job ? ["Job"] : []), "Args", "Schedule", "Start", { text: "Elapsed", cls: "num" }];
  const { whole, body } = table(heads);
  const more = el("div", { class: "more" });
  const empty = el("p", { class: "empty", hidden: true }, "No runs.");
  const box = el("section", { class: "flush" }, whole, empty, more);

  const admits = (run) => (!filters.states || filters.states.includes(run.state))
    && (!filters.q || run.job_id.toLowerCase().includes(filters.q.toLowerCase()))
    && (!filters.job_id || run.job_id === filters.job_id)
    && (!filters.label || run.labels.includes(filters.label));
  const key = (run) => (filters.order === "schedule" ? Date.parse(run.times.schedule) : -Number(run.run_id.slice(1)));

  const cells = (run) => [
    td("", runLink(run.run_id, "mono row-link")),
    td("", stateMark(run.state), alarmMarks(run)),
    job ? td("wide", jobLink(run.job_id), chips(run.labels)) : null,
    td("", argsMark(run.args)),
    td("time", timeMark(run.times.schedule)),
    td("time", timeMark(run.times.running)),
    td("num", elapsed(run)),
  ].filter(Boolean);

  function remove(id) {
    rows.get(id)?.remove();
    rows.delete(id);
    runs.delete(id);
  }

  function put(run, fresh = false) {
    const old = rows.get(run.run_id);
    if (!admits(run)) remove(run.run_id);
    else if (old) {
      runs.set(run.run_id, run);
      old.replaceChildren(...cells(run));
    } else {
      const row = el("tr", {}, cells(run));
      row.sort = key(run);
      row.runId = run.run_id;
      runs.set(run.run_id, run);
      rows.set(run.run_id, row);
      const after = fresh ? [...body.children].find((other) => other.sort > row.sort) : null;
      body.insertBefore(row, after ?? null);
      while (fresh && body.children.length > MOST) remove(body.lastElementChild.runId);
    }
    empty.hidden = rows.size > 0;
  }

  async function fetchPage() {
    try {
      const answer = await get("/search/runs", { q: filters.q, job_id: filters.job_id, label: filters.label,
        order: filters.order, state: filters.states, limit: PAGE, before: next }, { signal: page.left });
      for (const run of Object.values(answer.runs)) if (!runs.has(run.run_id)) put(run);
      next = answer.next;
      empty.hidden = rows.size > 0;
      const button = el("button", { type: "button", onclick: () => { button.disabled = true; fetchPage(); } }, "Earlier runs");
      fill(more, next ? button : null);
    } catch (error) {
      if (error.name !== "AbortError") notice(error.message);
    }
  }

  page.subscribe({
    message(message) {
      if (message.type === "run_transition" && !(filters.order === "schedule" && rows.size >= MOST)) put(message.run_summary, true);
      else if (message.type === "run_delete") remove(message.run_id);
    },
    refresh() {
      runs.clear();
      rows.clear();
      fill(body);
      next = null;
      fetchPage();
    },
  });
  page.tick(() => {
    for (const [id, run] of runs) {
      if (run.times.running && !FINISHED.includes(run.state)) rows.get(id).lastElementChild.textContent = elapsed(run);
    }
  });
  fetchPage();
  return box;
}
