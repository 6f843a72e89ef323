// The server: whether it is well, how it has been, what it made of the job files, and the configuration in force.

import { call, get } from "../lib/api.js";
import { ask, notice } from "../lib/dialogs.js";
import { el, fill, plural } from "../lib/dom.js";
import { argsMark, facts, jobLink, timeMark } from "../lib/marks.js";
import { linePlot } from "../lib/plots.js";
import { table, td } from "../lib/tables.js";
import { showAgo, showClock, showShort } from "../lib/times.js";

const EVERY = 10_000; // ms between two looks at health and figures
const LISTED = 100; // runs of a preview

const seconds = (value) => (value < 5e-6 ? "0 ms" : value >= 1 ? `${value.toFixed(value < 10 ? 1 : 0)} s` : `${(value * 1000).toFixed(value < 0.001 && value > 0 ? 2 : value < 0.1 ? 1 : 0)} ms`);
const small = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(value < 10 ? 1 : 0));
const size = (mib) => (mib >= 1024 ? `${small(mib / 1024)} GiB` : `${small(mib)} MiB`);
const inMib = (values) => values.map((value) => value / 2 ** 20);
const part = (value) => `${(value * 100).toFixed(value < 0.1 ? 1 : 0)} %`;

// name, title, how a value is shown, how the points of a span are made of the series
const PLOTS = [
  ["lateness", "Lateness of the timer, longest", seconds],
  ["ended", "Runs ended per minute", small, (values, step) => values.map((value) => value / (step / 60))],
  ["failed", "Runs failed per minute", small, (values, step) => values.map((value) => value / (step / 60))],
  ["running", "Runs under way", small],
  ["waiting", "Runs waiting", small],
  ["memory", "Memory", size, inMib],
  ["database", "Database with its log", size, inMib],
  ["processor", "Processor", part],
];

export async function mount(main, page) {
  page.title("Server");
  const health = el("section", { class: "health", role: "status" });
  const plots = el("div", { class: "plots" });
  const spans = el("div", { class: "choice small-choice", role: "group", "aria-label": "Span of the plots" });
  const reload = reloadPart();
  const config = el("div", { class: "config" });
  const find = el("input", { type: "search", placeholder: "Find a setting", "aria-label": "Find a setting" });
  main.append(el("h1", {}, "Server"), health,
    el("section", {}, el("div", { class: "head-row" }, el("h2", {}, "How it has been"), spans), plots),
    reload.box,
    el("section", {}, el("div", { class: "head-row" }, el("h2", {}, "Configuration in force"), el("div", { class: "find-setting" }, find)), config));
  let span = "hour";
  let version = "";

  async function showHealth() {
    let reasons = [];
    let stats = null;
    try {
      stats = await get("/stats", {}, { signal: page.left });
      await get("/health", {}, { signal: page.left });
    } catch (error) {
      if (error.name === "AbortError") return;
      reasons = error.answer?.reasons ?? [error.message];
    }
    if (!page.isOpen()) return;
    health.classList.toggle("ill", reasons.length > 0);
    const more = stats ? [`version ${version}`, ` · up since `, timeMark(stats.start_time, { full: true }), ` (${showAgo(stats.start_time).replace(" ago", "")})`,
      ` · ${plural(stats.threads, "thread")}`, ` · ${plural(stats.run_store.publisher.subscribers, "live stream")}`] : null;
    fill(health, el("div", {}, el("strong", {}, reasons.length ? "Not well" : "Well: runs start in time"),
      reasons.length ? el("ul", {}, reasons.map((reason) => el("li", {}, reason))) : null, more ? el("div", { class: "soft" }, more) : null));
  }

  for (const name of ["hour", "day", "week"]) {
    spans.append(el("button", { type: "button", onclick: () => { span = name; showPlots(); } }, name));
  }

  async function showPlots() {
    for (const button of spans.children) button.setAttribute("aria-pressed", String(button.textContent === span));
    let found;
    try {
      found = await get("/series", { span }, { signal: page.left });
    } catch (error) {
      if (error.name !== "AbortError") console.warn(error.message);
      return;
    }
    if (!page.isOpen()) return;
    const end = Date.parse(found.end);
    fill(plots, PLOTS.map(([name, title, shown, made]) => {
      const values = made ? made(found.series[name], found.step) : found.series[name];
      const points = values.map((value, n) => [end - (values.length - 1 - n) * found.step * 1000, value]);
      const now = values.at(-1);
      const most = values.length ? Math.max(...values) : 0;
      return el("figure", {}, el("figcaption", {}, el("span", {}, title), el("strong", {}, values.length ? shown(now) : "–")),
        points.length > 1 ? linePlot(points, { label: `${title}: now ${shown(now)}, at most ${shown(most)} within the ${span}`, showY: shown,
          showX: span === "hour" ? (x) => showClock(x).slice(0, 5) : showShort })
          : el("p", { class: "soft small" }, `The first point comes after ${Math.ceil(found.step / 60) > 1 ? plural(Math.ceil((2 * found.step) / 60), "minute") : `${2 * found.step} seconds`}.`));
    }));
  }

  async function showConfig() {
    const found = await get("/config", {}, { signal: page.left });
    if (!page.isOpen()) return;
    version = found.version;
    const sections = new Map();
    const walk = (value, path) => {
      for (const [name, inner] of Object.entries(value)) {
        if (inner !== null && typeof inner === "object" && !Array.isArray(inner) && Object.keys(inner).length) walk(inner, [...path, name]);
        else {
          const key = path.join(".") || "server";
          sections.set(key, [...(sections.get(key) ?? []), [name, inner]]);
        }
      }
    };
    walk(found.config, []);
    const draw = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      fill(config, [...sections].map(([name, entries]) => {
        const shown = entries.filter(([key, value]) => words.every((word) => `${name}.${key} ${JSON.stringify(value)}`.toLowerCase().includes(word)));
        return shown.length ? el("div", {}, el("h3", {}, name), facts(shown.map(([key, value]) => [key, value === null || value === "" ? el("span", { class: "soft" }, "–") : typeof value === "string" ? value : JSON.stringify(value)]))) : null;
      }));
      if (!config.firstChild) fill(config, el("p", { class: "soft" }, "No setting is like that."));
    };
    find.oninput = draw;
    draw();
  }

  await showConfig();
  const look = () => { showHealth(); showPlots(); };
  look();
  reload.load();
  const timer = setInterval(() => { if (document.visibilityState === "visible") look(); }, EVERY);
  page.leave(() => clearInterval(timer));
  page.subscribe({ refresh() { look(); reload.load(); showConfig().catch(() => {}); }, message(m) { if (m.type.startsWith("job")) reload.load(); } });

  // -- job files -----------------------------------------------------------------------------------

  function reloadPart() {
    const said = el("p", { class: "soft" });
    const { whole, body } = table(["Job", "File", "What is wrong"]);
    const warnings = el("ul", {});
    const preview = el("div", { class: "diff" });
    const button = el("button", { type: "button", onclick: () => look() }, "Preview a reload");
    const box = el("section", {}, el("div", { class: "head-row" }, el("h2", {}, "Job files"), button), said, whole, warnings, preview);
    whole.hidden = true;

    async function load() {
      let last;
      try {
        last = await call("GET", "/api/control/reload_jobs", undefined, { signal: page.left });
      } catch {
        return;
      }
      if (!page.isOpen()) return;
      fill(said, last.errors.length ? [el("strong", { class: "overdue" }, `The last reload was refused, for ${plural(last.errors.length, "error")}.`), " The jobs stay as they were. "] : "", `${plural(last.jobs, "job")}, read `, timeMark(last.time, { full: true }));
      errors(last.errors.map((error) => [error.job_id, `${error.path}${error.line ? `:${error.line}` : ""}`, error.message]));
      fill(warnings, last.warnings.map((warning) => el("li", {}, warning)));
      warnings.hidden = !last.warnings.length;
    }

    function errors(rows) {
      whole.hidden = !rows.length;
      fill(body, rows.map(([job, file, text]) => el("tr", {}, td("", job ? jobLink(job) : "–"), td("mono wide", file), td("wide", text))));
    }

    async function look() {
      button.disabled = true;
      fill(preview, el("progress", { "aria-label": "Reading the job files" }));
      try {
        show(await call("POST", "/api/control/reload_jobs?dry_run=True"));
      } catch (error) {
        fill(preview, el("p", { class: "wrong", role: "alert" }, error.message));
        if (error.answer?.job_errors) errors(error.answer.job_errors.map(([job, text]) => [job, "", text]));
      }
      button.disabled = false;
    }

    function show(diff) {
      const list = (title, ids) => (ids.length ? el("div", {}, el("strong", {}, `${title}: ${ids.length}`), el("ul", {}, ids.map((id) => el("li", {}, jobLink(id))))) : null);
      const runs = (title, found) => (found.count ? el("details", {}, el("summary", {}, `${plural(found.count, "scheduled run")} ${title}`),
        el("ul", {}, found.runs.slice(0, LISTED).map((run) => el("li", {}, timeMark(run.schedule, { full: true }), " ", jobLink(run.job_id), " ", argsMark(run.args))),
          found.count > LISTED ? el("li", { class: "soft" }, `and ${found.count - LISTED} more`) : null)) : null);
      const same = ![...diff.added, ...diff.removed, ...diff.changed].length;
      fill(preview,
        same ? el("p", { role: "status" }, "A reload would change nothing.") : el("p", { role: "status" }, "A reload would change this:"),
        list("Added", diff.added), list("Removed", diff.removed), list("Changed", diff.changed),
        runs("would appear", diff.runs.appear), runs("would disappear", diff.runs.disappear), runs("would do something else", diff.runs.change),
        same ? null : el("div", { class: "buttons" }, el("button", { type: "button", onclick: () => fill(preview) }, "Leave it"),
          el("button", { type: "button", class: "primary", onclick: () => reload(diff) }, "Reload")));
    }

    async function reload(diff) {
      const number = diff.added.length + diff.removed.length + diff.changed.length;
      const done = await ask({
        question: `Reload the job files? ${plural(number, "job")} will change.`,
        detail: diff.runs.disappear.count ? el("p", { class: "soft" }, `${plural(diff.runs.disappear.count, "scheduled run")} will disappear.`) : [],
        verb: "Reload",
        act: () => call("POST", "/api/control/reload_jobs"),
      });
      if (!done) return;
      fill(preview);
      notice(`Reloaded: ${done.added.length} added, ${done.removed.length} removed, ${done.changed.length} changed.`, { kind: "done" });
      load();
    }

    return { box, load };
  }
}
