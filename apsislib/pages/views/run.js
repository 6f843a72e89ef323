// One run: what it is, why it waits, its log and its output.

import { API, get } from "../lib/api.js";
import { el, fill } from "../lib/dom.js";
import { Socket } from "../lib/live.js";
import { alarmMarks, argsMark, chips, facts, jobLink, objectFacts, runLink, section, stateMark, timeMark } from "../lib/marks.js";
import { buttons } from "../lib/operations.js";
import { table, td } from "../lib/tables.js";
import { FINISHED, bytes, elapsed } from "../lib/times.js";

const SHOWN_OUTPUT = 512 * 1024; // bytes of output shown; the rest can be downloaded

export async function mount(main, page) {
  const [runId] = page.params;
  page.title(runId);
  let run;
  try {
    run = (await get(`/runs/${encodeURIComponent(runId)}`, {}, { signal: page.left })).runs[runId];
  } catch (error) {
    if (page.isOpen()) main.append(el("h1", {}, runId), el("section", {}, error.message));
    return;
  }
  if (!page.isOpen()) return;
  const state = el("span", {});
  const operations = el("div", { class: "buttons" });
  const times = el("div", {});
  const waits = el("div", {});
  const log = table(["Time", "Message"], { cls: "log" });
  const meta = el("div", {});
  const output = outputPanel(run);
  main.append(
    el("div", { class: "title" }, el("h1", {}, runId, " ", jobLink(run.job_id), chips(run.labels)), argsMark(run.args), state, operations),
    el("div", { class: "columns" },
      section("Times", times),
      section("Program", run.program ? objectFacts(run.program) : el("div", { class: "soft" }, "could not be bound"))),
    run.conds?.length ? section("Conditions", waits) : el("div"),
    section("Log", log.whole),
    output.box,
    el("section", {}, el("details", {}, el("summary", {}, "Metadata"), meta)),
  );

  function showTimes() {
    const rows = Object.entries(run.times).map(([name, time]) => [name, timeMark(time, { full: true })]);
    if (run.times.running) rows.push(["elapsed", elapsed(run)]);
    if (run.rerun_of) rows.push(["rerun of", runLink(run.rerun_of)]);
    fill(times, facts(rows));
  }

  function show() {
    fill(state, stateMark(run.state), alarmMarks(run));
    fill(operations, buttons(run));
    showTimes();
    fill(meta, objectFacts(run.meta?.program || {}));
  }

  async function showWaits() {
    let rows = (run.conds || []).map((cond) => ({ condition: cond.str }));
    if (run.state === "waiting") {
      try {
        const found = (await get(`/runs/${runId}/waiting`)).waiting;
        if (found.length) rows = found;
      } catch { /* it has just gone on */ }
    }
    fill(waits, rows.map((row) => el("div", {}, row.condition,
      row.holds ? el("span", { class: "chip" }, "holds") : null,
      row.reason ? el("span", { class: "chip" }, row.reason) : null)));
  }

  const logRow = ({ timestamp, message }) => el("tr", {}, td("time soft", timeMark(timestamp, { full: true })), td("wide", message));

  const socket = new Socket(`/runs/${encodeURIComponent(runId)}/updates?init`, {
    message(data) {
      const part = JSON.parse(data);
      if (part.run_log) fill(log.body, part.run_log.map(logRow));
      if (part.run_log_append) log.body.append(logRow(part.run_log_append));
      if (part.outputs) output.lengths(part.outputs);
      const moved = part.run && part.run.state !== run.state;
      if (part.run) run = { ...run, ...part.run };
      if (part.meta) run.meta = part.meta;
      if (part.run || part.meta) show();
      if (moved || part.run_log_append) showWaits();
    },
  });
  page.leave(() => { socket.close(); output.close(); });
  page.tick(() => { if (!FINISHED.includes(run.state)) showTimes(); });
  show();
  showWaits();
}

function outputPanel(run) {
  const info = el("span", { class: "soft" }, "none");
  const link = el("a", { href: `${API}/runs/${run.run_id}/output/output`, hidden: true }, "download");
  const pre = el("pre", { class: "output", tabIndex: 0, hidden: true, role: "region", "aria-label": "Output" });
  const box = section("Output", el("div", { class: "title" }, info, link), pre);
  let at = null; // offset of the next byte to come; null: nothing was asked for
  const decoder = new TextDecoder();
  let socket = null;
  let shown = 0;

  function add(data) {
    const pinned = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
    const text = decoder.decode(data, { stream: true });
    pre.append(document.createTextNode(text));
    shown += text.length;
    while (shown > SHOWN_OUTPUT && pre.childNodes.length > 1) {
      shown -= pre.firstChild.length;
      pre.firstChild.remove();
    }
    if (pinned) pre.scrollTop = pre.scrollHeight;
  }

  function receive(frame) {
    const all = new Uint8Array(frame);
    let end = 0;
    while (!(all[end] === 13 && all[end + 1] === 10 && all[end + 2] === 13 && all[end + 3] === 10) && end < all.length) end += 1;
    const first = Number(/content-range: bytes=(\d+)-/i.exec(new TextDecoder("latin1").decode(all.subarray(0, end)))?.[1]);
    const data = all.subarray(end + 4);
    // After a reconnection some may come again.
    if (first < at) { add(data.subarray(at - first)); at = Math.max(at, first + data.length); } else { add(data); at = first + data.length; }
  }

  function open(length) {
    pre.hidden = false;
    link.hidden = false;
    at = Math.max(0, length - SHOWN_OUTPUT);
    if (at) add(new TextEncoder().encode(`… ${bytes(at)} before this\n`));
    socket = new Socket(() => `/runs/${run.run_id}/output/output/updates?start=${at}`, { message: receive });
  }

  return {
    box,
    lengths(outputs) {
      const known = outputs.output;
      if (!known) return;
      fill(info, `${known.name}, ${bytes(known.length)}`);
      if (at === null) open(known.length);
    },
    close() { socket?.close(); },
  };
}
