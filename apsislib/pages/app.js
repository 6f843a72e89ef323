// The page of Apsis. Addresses are views; what a view shows comes from the API, and changes come over
// one WebSocket. Texts of jobs, runs and programs are only ever set as text, never as HTML.

const API = "/api/v1";
const FINISHED = ["success", "failure", "error", "skipped"];
const ACTIVE = ["waiting", "starting", "running", "stopping"];
const PAGE = 100; // runs fetched at a time
const SHOWN_OUTPUT = 512 * 1024; // bytes of output shown; the rest can be downloaded

// -- elements ------------------------------------------------------------------------------------

/** An element. `props` are properties and `data-`/`aria-` attributes; children are nodes or texts. */
function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key.includes("-")) node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const byId = (id) => document.getElementById(id);
const path = (text) => text.split("/").map(encodeURIComponent).join("/");
const runLink = (id) => el("a", { href: `/runs/${encodeURIComponent(id)}`, className: "mono" }, id);
const jobLink = (id) => el("a", { href: `/job/${path(id)}` }, id);
const chips = (labels) => labels.map((label) => el("span", { className: "chip" }, label));
const section = (title, ...content) => el("section", {}, el("h2", {}, title), ...content);

function stateMark(state) {
  return el("span", { className: "state", "data-state": state }, state);
}

const alarmMarks = (run) => (run.alarms || []).map((alarm) => el("span", { className: "chip alarm" }, alarm));

function argsMark(args) {
  return el("span", { className: "args" }, Object.entries(args).map(([k, v]) => el("span", {}, `${k}=${v}`)));
}

function table(heads, rows, className = "") {
  const row = heads.map((h) => (typeof h === "string" ? el("th", { scope: "col" }, h) : h));
  const body = el("tbody", {}, rows);
  const whole = el("div", { className: "scroll" }, el("table", { className }, el("thead", {}, el("tr", {}, row)), body));
  return { whole, body };
}

function notice(text) {
  const box = byId("notices");
  if ([...box.children].some((other) => other.dataset.text === text)) return;
  const close = el("button", { type: "button", "aria-label": "Close" }, "×");
  const node = el("div", { className: "notice" }, el("span", {}, text), close);
  node.dataset.text = text;
  close.onclick = () => node.remove();
  setTimeout(() => node.remove(), 15000);
  box.append(node);
}

/** Ask; resolves to whether the answer was yes. */
function confirmed(question, verb) {
  const dialog = byId("dialog");
  byId("question").textContent = question;
  byId("confirm").textContent = verb;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
  });
}

// -- times ---------------------------------------------------------------------------------------

const zones = [Intl.DateTimeFormat().resolvedOptions().timeZone, "UTC", "America/New_York", "Europe/London", "Asia/Tokyo"];
let zone = "UTC";
let format;

function setZone(name) {
  zone = name;
  format = new Intl.DateTimeFormat("sv-SE", {
    timeZone: zone, year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  });
  try { localStorage.setItem("zone", zone); } catch { /* storage is off: it lasts as long as the page */ }
}

const showTime = (iso) => (iso ? format.format(new Date(iso)) : "");

function showSeconds(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return h ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

function elapsed(run) {
  const { running } = run.times;
  if (!running) return "";
  const end = FINISHED.includes(run.state) ? run.times[run.state] : undefined;
  return showSeconds(((end ? new Date(end) : new Date()) - new Date(running)) / 1000);
}

function bytes(count) {
  if (count < 1024) return `${count} bytes`;
  const units = ["KiB", "MiB", "GiB"];
  let value = count / 1024;
  let unit = 0;
  while (value >= 1024 && unit < 2) { value /= 1024; unit += 1; }
  return `${value.toFixed(1)} ${units[unit]}`;
}

// -- talking to the server -------------------------------------------------------------------------

async function call(method, address, body) {
  const options = { method };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "content-type": "application/json" };
  }
  const response = await fetch(address, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(answer.error || `the server answered ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return answer;
}

const get = (address) => call("GET", API + address);

/** A WebSocket that comes back by itself until it is closed. `open()` is called on each connection. */
class Socket {
  constructor(address, { open = () => {}, message, closed = () => {} }) {
    this.address = address;
    this.does = { open, message, closed };
    this.wait = 500;
    this.ended = false;
    this.connect();
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const address = typeof this.address === "function" ? this.address() : this.address;
    this.socket = new WebSocket(`${scheme}://${location.host}${API}${address}`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => { this.wait = 500; this.does.open(); };
    this.socket.onmessage = (event) => { if (!this.ended) this.does.message(event.data); };
    this.socket.onclose = (event) => {
      if (this.ended) return;
      this.does.closed(event.code);
      // 1000: the server has no more to say.
      if (event.code === 1000) return;
      this.timer = setTimeout(() => this.connect(), this.wait * (0.75 + Math.random() / 2));
      this.wait = Math.min(this.wait * 2, 30000);
    };
  }

  close() {
    this.ended = true;
    clearTimeout(this.timer);
    this.socket.close();
  }
}

// One stream of changes for whichever view is open; it begins anew when the connection does.
const listeners = new Set();

function follow(does) {
  listeners.add(does);
  onLeave(() => listeners.delete(does));
}

function startStream() {
  const mark = byId("live");
  let before = false;
  new Socket("/summary", {
    open() {
      mark.textContent = "live";
      mark.classList.add("on");
      // What happened while there was no connection was not told: fetch again.
      if (before) for (const does of listeners) does.refresh?.();
      before = true;
    },
    closed() {
      mark.textContent = "reconnecting";
      mark.classList.remove("on");
    },
    message(data) {
      for (const message of JSON.parse(data)) for (const does of listeners) does.message?.(message);
    },
  });
}

// -- operations --------------------------------------------------------------------------------------

const OPERATIONS = {
  scheduled: ["start", "skip"],
  waiting: ["start", "skip"],
  running: ["stop", "terminate", "kill"],
  stopping: ["terminate", "kill"],
};
const ADDRESS = { terminate: "signal/SIGTERM", kill: "signal/SIGKILL" };

async function operate(run, verb) {
  const name = `${verb[0].toUpperCase()}${verb.slice(1)}`;
  if (!(await confirmed(`${name} run ${run.run_id} of ${run.job_id}?`, name))) return;
  try {
    const answer = await call("POST", `${API}/runs/${run.run_id}/${ADDRESS[verb] || verb}`);
    if (answer.show_run_id) go(`/runs/${answer.show_run_id}`);
  } catch (error) {
    notice(error.message);
  }
}

async function mark(run, state) {
  if (!(await confirmed(`Mark run ${run.run_id} as ${state}?`, "Mark"))) return;
  try {
    await call("POST", `${API}/runs/${run.run_id}/mark/${state}`);
  } catch (error) {
    notice(error.message);
  }
}

function operations(run) {
  const verbs = OPERATIONS[run.state] || (FINISHED.includes(run.state) ? ["rerun"] : []);
  const buttons = verbs.map((verb) => el("button", { type: "button", onclick: () => operate(run, verb) }, verb));
  if (FINISHED.includes(run.state)) {
    const choice = el("select", { "aria-label": "Mark as" }, el("option", { value: "" }, "mark as…"),
      FINISHED.filter((s) => s !== run.state).map((s) => el("option", { value: s }, s)));
    choice.onchange = () => { mark(run, choice.value); choice.value = ""; };
    buttons.push(choice);
  }
  return buttons;
}

// -- a list of runs ------------------------------------------------------------------------------------

/** A table of runs, newest first, that fetches more on demand and follows changes. */
function runsList(filters, { job = true } = {}) {
  const runs = new Map();
  const rows = new Map();
  let next = null;
  const heads = ["Run", "State", ...(job ? ["Job"] : []), "Args", "Schedule", "Start",
    el("th", { scope: "col", className: "num" }, "Elapsed")];
  const { whole, body } = table(heads, []);
  const more = el("div", { className: "more" });
  const empty = el("p", { className: "empty", hidden: true }, "No runs.");
  const box = el("section", { className: "flush" }, whole, empty, more);

  const admits = (run) => (!filters.states || filters.states.includes(run.state))
    && (!filters.q || run.job_id.toLowerCase().includes(filters.q.toLowerCase()))
    && (!filters.job_id || run.job_id === filters.job_id)
    && (!filters.label || run.labels.includes(filters.label));
  const key = (run) => (filters.order === "schedule" ? Date.parse(run.times.schedule) : -Number(run.run_id.slice(1)));

  function cells(run) {
    return [
      el("td", {}, runLink(run.run_id)),
      el("td", {}, stateMark(run.state), alarmMarks(run)),
      job ? el("td", { className: "wide" }, jobLink(run.job_id), chips(run.labels)) : null,
      el("td", {}, argsMark(run.args)),
      el("td", { className: "time" }, showTime(run.times.schedule)),
      el("td", { className: "time" }, showTime(run.times.running)),
      el("td", { className: "num" }, elapsed(run)),
    ].filter(Boolean);
  }

  function put(run, fresh = false) {
    const old = rows.get(run.run_id);
    if (!admits(run)) {
      old?.remove();
      rows.delete(run.run_id);
      runs.delete(run.run_id);
    } else if (old) {
      runs.set(run.run_id, run);
      old.replaceChildren(...cells(run));
    } else {
      const row = el("tr", {}, cells(run));
      row.sort = key(run);
      runs.set(run.run_id, run);
      rows.set(run.run_id, row);
      const after = fresh ? [...body.children].find((other) => other.sort > row.sort) : null;
      body.insertBefore(row, after || null);
      // A page left open for a week must not fill up.
      while (fresh && body.children.length > 1000) {
        const last = body.lastElementChild;
        for (const [id, other] of rows) if (other === last) { rows.delete(id); runs.delete(id); }
        last.remove();
      }
    }
    empty.hidden = rows.size > 0;
  }

  async function fetchPage() {
    const query = new URLSearchParams({ limit: PAGE });
    for (const name of ["q", "job_id", "label", "order"]) if (filters[name]) query.set(name, filters[name]);
    for (const state of filters.states || []) query.append("state", state);
    if (next) query.set("before", next);
    try {
      const answer = await get(`/search/runs?${query}`);
      for (const run of Object.values(answer.runs)) if (!runs.has(run.run_id)) put(run);
      next = answer.next;
      empty.hidden = rows.size > 0;
      const button = el("button", { type: "button", onclick: () => { button.disabled = true; fetchPage(); } }, "Earlier runs");
      more.replaceChildren(...(next ? [button] : []));
    } catch (error) {
      notice(error.message);
    }
  }

  follow({
    message(message) {
      if (message.type === "run_transition" && !(filters.order === "schedule" && rows.size >= 1000)) put(message.run_summary, true);
      else if (message.type === "run_delete") {
        rows.get(message.run_id)?.remove();
        rows.delete(message.run_id);
        runs.delete(message.run_id);
      }
    },
    refresh() {
      runs.clear();
      rows.clear();
      body.replaceChildren();
      next = null;
      fetchPage();
    },
  });
  everySecond(() => {
    for (const [id, run] of runs) {
      if (run.times.running && !FINISHED.includes(run.state)) rows.get(id).lastElementChild.textContent = elapsed(run);
    }
  });
  fetchPage();
  return box;
}

// -- views ---------------------------------------------------------------------------------------

const SHOWS = {
  recent: { name: "Recent", states: [...ACTIVE, ...FINISHED] },
  active: { name: "Active", states: ACTIVE },
  failed: { name: "Failed", states: ["failure", "error"] },
  upcoming: { name: "Upcoming", states: ["scheduled"], order: "schedule" },
};

function runsView(main, query) {
  document.title = "Runs – Apsis";
  const show = SHOWS[query.get("show")] ? query.get("show") : "recent";
  const words = query.get("q") || "";
  const input = el("input", { type: "search", placeholder: "part of a job ID", value: words, "aria-label": "Part of a job ID" });
  const change = (name, value) => {
    const changed = new URLSearchParams(query);
    if (value && value !== "recent") changed.set(name, value); else changed.delete(name);
    go(`/runs${String(changed) ? `?${changed}` : ""}`);
  };
  input.onchange = () => change("q", input.value.trim());
  const choice = el("select", { "aria-label": "Which runs" },
    Object.entries(SHOWS).map(([id, { name }]) => el("option", { value: id, selected: id === show }, name)));
  choice.onchange = () => change("show", choice.value);
  main.append(
    el("h1", {}, "Runs"),
    el("div", { className: "bar" }, choice, el("div", { className: "grow" }, input)),
    runsList({ q: words, label: query.get("label"), states: SHOWS[show].states, order: SHOWS[show].order }),
  );
}

function jobsView(main, query) {
  document.title = "Jobs – Apsis";
  const input = el("input", { type: "search", placeholder: "words of a job, its labels or its program", value: query.get("q") || "",
    "aria-label": "Find jobs" });
  const { whole, body } = table(["Job", "Params", "Schedule", "Program"], []);
  const empty = el("p", { className: "empty", hidden: true }, "No jobs.");
  main.append(el("h1", {}, "Jobs"), el("div", { className: "bar" }, el("div", { className: "grow" }, input)),
    el("section", { className: "flush" }, whole, empty));
  let jobs = [];

  function show() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (job) => `${job.job_id} ${job.metadata.labels.join(" ")} ${job.program.str}`.toLowerCase();
    const found = jobs.filter((job) => words.every((word) => text(job).includes(word)));
    body.replaceChildren(...found.map((job) => el("tr", {},
      el("td", { className: "wide" }, jobLink(job.job_id), chips(job.metadata.labels)),
      el("td", { className: "args" }, job.params.join(", ")),
      el("td", {}, job.schedule.map((s) => el("div", { className: s.enabled ? "" : "soft" }, s.enabled ? s.str : `${s.str} (disabled)`))),
      el("td", { className: "mono wide" }, job.program.str))));
    empty.hidden = found.length > 0;
  }

  async function load() {
    try {
      jobs = (await get("/jobs")).sort((a, b) => (a.job_id < b.job_id ? -1 : 1));
      show();
    } catch (error) {
      notice(error.message);
    }
  }
  input.oninput = () => {
    show();
    history.replaceState(null, "", input.value ? `/jobs?q=${encodeURIComponent(input.value)}` : "/jobs");
  };
  follow({ message: (m) => { if (m.type.startsWith("job")) load(); }, refresh: load });
  load();
}

function facts(value) {
  const rows = Object.entries(value).filter(([name]) => name !== "str");
  return el("dl", {}, rows.flatMap(([name, v]) => [el("dt", {}, name),
    el("dd", { className: "mono" }, typeof v === "string" ? v : JSON.stringify(v))]));
}

function lines(texts, none) {
  return texts.length ? texts.map((text) => el("div", {}, text)) : el("div", { className: "soft" }, none);
}

async function jobView(main, query, jobId) {
  document.title = `${jobId} – Apsis`;
  main.append(el("h1", {}, jobId));
  let job = null;
  try {
    job = await get(`/jobs/${encodeURIComponent(jobId)}`);
  } catch (error) {
    const text = error.status === 404 ? "There is no such job now. Its past runs are below." : error.message;
    main.append(el("section", {}, text));
  }
  if (!main.isConnected) return;
  if (job) {
    main.querySelector("h1").append(...chips(job.metadata.labels));
    if (job.metadata.description) main.append(el("section", {}, el("dd", {}, job.metadata.description)));
    main.append(el("div", { className: "columns" },
      section("Program", facts(job.program)),
      el("div", {},
        section("Schedules", lines(job.schedule.map((s) => s.str + (s.enabled ? "" : " (disabled)")), "none")),
        section("Conditions", lines(job.condition.map((c) => c.str), "none")),
        section("Actions", lines(job.action.map((a) => a.str), "none")),
        scheduleForm(job))));
  }
  main.append(el("h2", {}, "Runs"), runsList({ job_id: jobId }, { job: false }));
}

function scheduleForm(job) {
  const fields = job.params.map((name) => [name, el("input", { type: "text", autocomplete: "off" })]);
  const when = el("input", { type: "text", value: "now" });
  const button = el("button", { type: "submit", className: "primary" }, "Schedule");
  const answer = el("span", {});
  const form = el("form", {},
    fields.map(([name, input]) => el("label", { className: "field" }, el("span", {}, name), input)),
    el("label", { className: "field" }, el("span", {}, "when (now, or a time such as 2031-05-06T07:00:00Z)"), when),
    el("div", { className: "buttons" }, answer, button));
  form.onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const args = Object.fromEntries(fields.map(([name, input]) => [name, input.value]));
      const made = await call("POST", `${API}/runs`, { job_id: job.job_id, args, times: { schedule: when.value.trim() } });
      answer.replaceChildren("scheduled ", runLink(Object.keys(made.runs)[0]));
    } catch (error) {
      notice(error.message);
    }
    button.disabled = false;
  };
  return section("Schedule a run", form);
}

async function runView(main, query, runId) {
  document.title = `${runId} – Apsis`;
  let run;
  try {
    run = (await get(`/runs/${encodeURIComponent(runId)}`)).runs[runId];
  } catch (error) {
    main.append(el("h1", {}, runId), el("section", {}, error.message));
    return;
  }
  if (!main.isConnected) return;
  const state = el("span", {});
  const buttons = el("div", { className: "buttons" });
  const times = el("dl", {});
  const waits = el("div", {});
  const log = table(["Time", "Message"], [], "log");
  const meta = el("div", {});
  const output = outputPanel(run);
  main.append(
    el("div", { className: "title" }, el("h1", {}, runId, " ", jobLink(run.job_id), chips(run.labels)), argsMark(run.args), state, buttons),
    el("div", { className: "columns" },
      section("Times", times),
      section("Program", run.program ? facts(run.program) : el("div", { className: "soft" }, "could not be bound"))),
    run.conds?.length ? section("Conditions", waits) : el("div"),
    section("Log", log.whole),
    output.box,
    el("section", {}, el("details", {}, el("summary", {}, "Metadata"), meta)),
  );

  function showTimes() {
    const rows = Object.entries(run.times).map(([name, time]) => [name, showTime(time)]);
    if (run.times.running) rows.push(["elapsed", elapsed(run)]);
    if (run.rerun_of) rows.push(["rerun of", runLink(run.rerun_of)]);
    times.replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  }

  function show() {
    state.replaceChildren(stateMark(run.state), ...alarmMarks(run));
    buttons.replaceChildren(...operations(run));
    showTimes();
    meta.replaceChildren(facts(run.meta?.program || {}));
  }

  async function showWaits() {
    const known = run.conds || [];
    let rows = known.map((cond) => ({ condition: cond.str }));
    if (run.state === "waiting") {
      try {
        const found = (await get(`/runs/${runId}/waiting`)).waiting;
        if (found.length) rows = found;
      } catch { /* it has just gone on */ }
    }
    waits.replaceChildren(...(rows.length ? rows.map((row) => el("div", {}, row.condition,
      row.holds ? el("span", { className: "chip" }, "holds") : null,
      row.reason ? el("span", { className: "chip" }, row.reason) : null)) : []));
  }

  const logRow = ({ timestamp, message }) => el("tr", {}, el("td", { className: "time soft" }, showTime(timestamp)), el("td", { className: "wide" }, message));

  const socket = new Socket(`/runs/${encodeURIComponent(runId)}/updates?init`, {
    message(data) {
      const part = JSON.parse(data);
      if (part.run_log) log.body.replaceChildren(...part.run_log.map(logRow));
      if (part.run_log_append) log.body.append(logRow(part.run_log_append));
      if (part.outputs) output.lengths(part.outputs);
      const moved = part.run && part.run.state !== run.state;
      if (part.run) run = { ...run, ...part.run };
      if (part.meta) run.meta = part.meta;
      if (part.run || part.meta) show();
      if (moved || part.run_log_append) showWaits();
    },
  });
  onLeave(() => { socket.close(); output.close(); });
  everySecond(() => { if (!FINISHED.includes(run.state)) showTimes(); });
  show();
  showWaits();
}

function outputPanel(run) {
  const title = el("h2", {}, "Output");
  const info = el("span", { className: "soft" }, "none");
  const link = el("a", { href: `${API}/runs/${run.run_id}/output/output`, hidden: true }, "download");
  const pre = el("pre", { className: "output", tabIndex: 0, hidden: true });
  const box = el("section", {}, title, el("div", { className: "title" }, info, link), pre);
  let at = null; // offset of the next byte to come; null: nothing was asked for
  let decoder = new TextDecoder();
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
      info.textContent = `${known.name}, ${bytes(known.length)}`;
      if (at === null) open(known.length);
    },
    close() { socket?.close(); },
  };
}

async function agentsView(main) {
  document.title = "Agents – Apsis";
  const box = el("div", {});
  main.append(el("h1", {}, "Agents"), box);
  async function load() {
    try {
      const groups = await call("GET", "/api/procstar/groups");
      const names = Object.keys(groups).sort();
      box.replaceChildren(...names.map((name) => {
        const { whole } = table(["Host", "User", "State", "Connected since", "Connection"], groups[name].map((c) => el("tr", {},
          el("td", {}, c.info.proc?.hostname || c.info.socket?.address || ""),
          el("td", {}, c.info.proc?.username || ""),
          el("td", {}, c.info.stats.connected ? c.shutdown_state : "away"),
          el("td", { className: "time" }, showTime(c.info.stats.last_connect_time)),
          el("td", { className: "mono soft" }, c.info.conn.conn_id))));
        return el("div", {}, el("h2", {}, name), el("section", { className: "flush" }, whole));
      }));
      if (!names.length) box.replaceChildren(el("section", {}, el("p", { className: "empty" }, "No agents are connected.")));
    } catch (error) {
      box.replaceChildren(el("section", {}, error.message));
    }
  }
  follow({ message: (m) => { if (m.type.startsWith("agent")) load(); }, refresh: load });
  load();
}

// -- moving between views ------------------------------------------------------------------------------

let leaving = [];
let ticking = [];
const onLeave = (does) => leaving.push(does);
const everySecond = (does) => ticking.push(does);

const VIEWS = [
  [/^\/(?:runs\/?|index\.html)?$/, runsView, "/runs"],
  [/^\/runs\/([^/]+)\/?$/, runView, "/runs"],
  [/^\/jobs(?:\/.*)?$/, jobsView, "/jobs"],
  [/^\/job\/(.+)$/, jobView, "/jobs"],
  [/^\/agents\/?$/, agentsView, "/agents"],
];

function show() {
  for (const does of leaving) does();
  leaving = [];
  ticking = [];
  const main = el("main", { id: "main", tabIndex: -1 });
  byId("main").replaceWith(main);
  const found = VIEWS.map(([pattern, view, tab]) => [pattern.exec(location.pathname), view, tab]).find(([match]) => match);
  for (const link of document.querySelectorAll("nav a")) {
    if (found && link.getAttribute("href") === found[2]) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!found) {
    main.append(el("h1", {}, "There is no such page."));
    return;
  }
  let name;
  try { name = found[0][1] === undefined ? undefined : decodeURIComponent(found[0][1]); } catch { name = found[0][1]; }
  found[1](main, new URLSearchParams(location.search), name);
}

function go(address) {
  history.pushState(null, "", address);
  show();
  window.scrollTo(0, 0);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
  if (!link || !plain || link.origin !== location.origin) return;
  if (link.pathname.startsWith("/api/") || link.getAttribute("href").startsWith("#")) return;
  event.preventDefault();
  go(link.href);
});
window.addEventListener("popstate", show);

const stored = (() => { try { return localStorage.getItem("zone"); } catch { return null; } })();
const choice = byId("zone");
for (const name of new Set(zones.filter(Boolean))) choice.append(el("option", { value: name }, name));
setZone(zones.includes(stored) ? stored : zones[0] || "UTC");
choice.value = zone;
choice.onchange = () => { setZone(choice.value); tick(); show(); };

function tick() {
  byId("clock").textContent = format.format(new Date());
  for (const does of ticking) does();
}
setInterval(tick, 1000);
tick();
startStream();
show();
