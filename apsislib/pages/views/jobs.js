// All jobs: as a tree of folders or flat, with their schedules, last and next runs, and how they have gone. Only the
// rows that can be seen are drawn, and only of these is asked how they have gone.

import { get } from "../lib/api.js";
import { notice } from "../lib/dialogs.js";
import { el, encodePath, fill, kept, oneAtATime, paced, plural, settled } from "../lib/dom.js";
import { stateIcon } from "../lib/marks.js";
import { go } from "../lib/router.js";
import { Rows, td } from "../lib/tables.js";
import { FINISHED } from "../lib/times.js";
import { indented, labelButtons, lastMark, nextMark, recentCells, scheduleText } from "./jobs-rows.js";
import { tree } from "./jobs-tree.js";

const ROW = 31; // px; style/jobs.css has the same
const OVER = 12; // rows drawn beyond either edge of what is seen
const OPEN = 300; // jobs up to which all folders are open at first
const ASKED = 100; // jobs whose runs are asked for at once
const STALE = 30_000; // ms between two looks at how all stand

const opened = new Map(); // folder -> whether it is open, as long as the tab lives

const HEADS = [
  ["job", "Job"], ["schedule", "Schedule"], ["next", "Next"], ["last", "Last run"], ["rate", "OK", "num", "Part of the last 20 runs that succeeded"],
  ["spark", "Durations", "", "Durations of the last 20 runs, the newest at the right"], ["about", "Description"],
];

export async function mount(main, page) {
  page.title("Jobs");
  let query = page.query;
  const folder = page.params[0] ? page.params[0].replace(/\/+$/, "") : "";
  let jobs = [];
  const stands = new Map(); // job ID -> {last, next}
  const recent = new Map(); // job ID -> runs, newest first
  const outdated = new Set(); // IDs of jobs of which another run has ended since
  let matched = null; // IDs that the server found for the words; null: no words, or not yet
  let items = []; // what the table would show, all of it

  const field = el("input", { type: "search", placeholder: "Search names, params, commands, descriptions, labels", "aria-label": "Search jobs", value: words() });
  const only = el("select", { "aria-label": "Which jobs" }, [["", "All jobs"], ["failing", "Last run failed"], ["active", "Active now"], ["scheduled", "With a schedule"], ["unscheduled", "Without a schedule"]]
    .map(([value, text]) => el("option", { value, selected: value === (query.get("only") ?? "") }, text)));
  const shape = el("div", { class: "choice", role: "group", "aria-label": "How jobs are shown" },
    ["tree", "flat"].map((name) => el("button", { type: "button", "data-shape": name, onclick: () => { kept.set("jobs-shape", name); change({ view: name }); } }, name === "tree" ? "Tree" : "Flat")));
  const expand = el("button", { type: "button", class: "quiet", onclick: () => setAll(true) }, "Expand all");
  const collapse = el("button", { type: "button", class: "quiet", onclick: () => setAll(false) }, "Collapse all");
  const count = el("span", { class: "soft", role: "status" });
  const labels = el("span", { class: "filters" });
  const heads = el("tr");
  const body = el("tbody");
  const above = el("tbody", { "aria-hidden": "true" }, el("tr", {}, el("td", { class: "space" })));
  const below = el("tbody", { "aria-hidden": "true" }, el("tr", {}, el("td", { class: "space" })));
  const table = el("table", { class: "jobs" }, el("caption", { class: "hidden" }, "Jobs"), el("thead", {}, heads), above, body, below);
  const empty = el("p", { class: "empty", hidden: true });
  main.append(
    el("div", { class: "title" }, el("h1", {}, crumbs(folder)), count),
    el("div", { class: "bar" }, el("div", { class: "grow" }, field), only, labels, shape, expand, collapse,
      el("a", { class: "button", href: runsHref() }, "Show runs")),
    el("section", { class: "flush jobs-box" }, table, empty));

  const rows = new Rows(body, { key: (item) => item.key, cells: cellsOf, cls: (item) => (item.job ? (item.job.schedule.length ? "" : "manual") : "folder-row") });

  // -- the address ---------------------------------------------------------------------------------

  /** What is searched for; `keywords=a,b` is how older pages said it. */
  function words() { return query.get("q") ?? (query.get("keywords") ?? "").replaceAll(",", " "); }
  function wantedLabels() { return (query.get("labels") ?? query.get("label") ?? "").split(",").filter(Boolean); }
  function isFlat() { return (query.get("view") ?? kept.get("jobs-shape")) === "flat" || Boolean(query.get("sort")); }

  function change(values) {
    const next = new URLSearchParams(query);
    for (const [name, value] of Object.entries(values)) { if (value) next.set(name, value); else next.delete(name); }
    if ("q" in values) next.delete("keywords");
    if ("labels" in values) next.delete("label");
    if (values.view === "tree") next.delete("sort");
    go(`${location.pathname}${next.size ? `?${next}` : ""}`, { replace: true });
  }

  function runsHref() {
    const terms = [...words().split(/\s+/), folder].filter(Boolean);
    const params = new URLSearchParams();
    if (terms.length) params.set("q", terms.join(" "));
    return `/runs${params.size ? `?${params}` : ""}`;
  }

  let typed = false; // what stands in the field has yet to be taken up
  page.requery((next) => { query = next; if (!typed && document.activeElement !== field) field.value = words(); find(); });
  const take = settled(() => { typed = false; change({ q: field.value.trim() }); }, 120);
  field.addEventListener("input", () => { typed = true; take(); });
  only.onchange = () => change({ only: only.value });

  // -- what is shown ---------------------------------------------------------------------------------

  const textOf = (job) => (job.text ??= [job.job_id, ...job.params, ...job.labels, job.description, job.program.str, ...job.schedule.map((s) => s.words)].join("\n").toLowerCase());

  function passes(job) {
    if (folder && job.job_id !== folder && !job.job_id.startsWith(`${folder}/`)) return false;
    if (!wantedLabels().every((label) => job.labels.includes(label))) return false;
    const stand = stands.get(job.job_id);
    const kind = only.value;
    if (kind === "failing" && !["failure", "error"].includes(stand?.last?.state)) return false;
    if (kind === "active" && (!stand?.last || FINISHED.includes(stand.last.state))) return false;
    if (kind === "scheduled" && !job.schedule.some((s) => s.enabled)) return false;
    if (kind === "unscheduled" && job.schedule.some((s) => s.enabled)) return false;
    const parts = words().toLowerCase().split(/\s+/).filter(Boolean);
    return !parts.length || parts.every((part) => textOf(job).includes(part)) || Boolean(matched?.has(job.job_id));
  }

  function arrange() {
    const found = jobs.filter(passes);
    fill(count, found.length === jobs.length ? plural(jobs.length, "job") : `${found.length.toLocaleString("en")} of ${plural(jobs.length, "job")}`);
    const flat = isFlat();
    for (const button of shape.children) button.setAttribute("aria-pressed", String(button.dataset.shape === (flat ? "flat" : "tree")));
    expand.hidden = collapse.hidden = flat;
    table.classList.toggle("tree", !flat);
    drawOnce(labels, wantedLabels().join(","), () => wantedLabels().map((label) => el("button", { type: "button", class: "chip filter", title: "Remove this filter",
      onclick: () => change({ labels: wantedLabels().filter((other) => other !== label).join(",") }) }, label, " ×")));
    items = flat ? sorted(found).map((job) => ({ key: job.job_id, job, depth: 0, name: job.job_id })) : tree(found, folder, isOpen, (id) => stands.get(id)?.last?.state);
    drawOnce(heads, `${flat} ${query.get("sort")}`, () => HEADS.map(([name, text, cls, title]) => head(name, text, cls, title)));
    empty.hidden = found.length > 0;
    if (!found.length) fill(empty, jobs.length ? "No job is like that." : "There are no jobs yet: put files into the job directory, and reload.");
    document.querySelector(".jobs-box")?.setAttribute("data-count", String(found.length));
    table.setAttribute("aria-rowcount", String(items.length + 1));
    draw();
  }

  /** What can be clicked is made anew only when it is another: else a click that is under way would be lost. */
  function drawOnce(node, key, make) {
    if (node.drawn === key) return;
    node.drawn = key;
    fill(node, make());
  }

  const SORTS = {
    job: (job) => job.job_id,
    next: (job) => stands.get(job.job_id)?.next?.time ?? "9",
    last: (job) => stands.get(job.job_id)?.last?.time ?? "",
  };

  function head(name, text, cls = "", title = null) {
    const sort = query.get("sort") ?? (isFlat() ? "job" : "");
    const down = sort.startsWith("-");
    const mine = sort.replace("-", "") === name;
    const th = el("th", { scope: "col", class: `${cls} ${name}`, title, "aria-sort": mine ? (down ? "descending" : "ascending") : null });
    if (!SORTS[name]) { th.append(text); return th; }
    th.append(el("button", { type: "button", class: "sort", onclick: () => change({ view: "flat", sort: mine && !down ? `-${name}` : mine ? name : name === "last" ? "-last" : name }) },
      text, mine ? (down ? " ↓" : " ↑") : ""));
    return th;
  }

  function sorted(found) {
    const sort = query.get("sort") ?? "job";
    const by = SORTS[sort.replace("-", "")] ?? SORTS.job;
    const order = [...found].sort((a, b) => { const [x, y] = [by(a), by(b)]; return x < y ? -1 : x > y ? 1 : 0; });
    return sort.startsWith("-") ? order.reverse() : order;
  }

  const searching = () => Boolean(words() || only.value || wantedLabels().length);
  const isOpen = (path) => (searching() ? opened.get(`?${path}`) ?? true : opened.get(path) ?? jobs.length <= OPEN);

  function toggle(item) {
    opened.set(`${searching() ? "?" : ""}${item.folder.path}`, !item.open);
    arrange();
  }

  function setAll(open) {
    for (const job of jobs) {
      const parts = job.job_id.split("/");
      for (let n = 1; n < parts.length; n += 1) { opened.set(parts.slice(0, n).join("/"), open); opened.set(`?${parts.slice(0, n).join("/")}`, open); }
    }
    arrange();
  }

  // -- rows ------------------------------------------------------------------------------------------

  function cellsOf(item) {
    return item.job ? jobCells(item) : folderCells(item);
  }

  function folderCells(item) {
    const { folder: inner, open, sum } = item;
    const name = el("button", { type: "button", class: "folder-toggle row-link", "aria-expanded": String(open), onclick: () => toggle(item) },
      el("span", { class: "twist", "aria-hidden": "true" }, open ? "▾" : "▸"), inner.name);
    return [
      indented(item.depth, name, el("a", { class: "into", href: `/jobs/${encodePath(inner.path)}${location.search}`, title: "Only this folder", "aria-label": `Only the folder ${inner.path}` }, "⌖")),
      el("td", { colSpan: [...heads.children].filter((th) => th.offsetWidth).length - 1, class: "soft" }, plural(sum.jobs, "job"),
        sum.failing ? el("span", { class: "sum" }, stateIcon("failure"), ` ${sum.failing} failing`) : null,
        sum.active ? el("span", { class: "sum" }, stateIcon("running"), ` ${sum.active} active`) : null),
    ];
  }

  function jobCells({ job, depth, name }) {
    const stand = stands.get(job.job_id);
    const cut = name.lastIndexOf("/") + 1;
    const link = el("a", { href: `/job/${encodePath(job.job_id)}`, class: "job row-link", title: job.job_id },
      cut ? el("span", { class: "folder" }, name.slice(0, cut)) : null, name.slice(cut));
    return [
      indented(depth, link, job.params.length ? el("span", { class: "params soft", title: `Params: ${job.params.join(", ")}` }, `(${job.params.join(", ")})`) : null, labelButtons(job, (label) => change({ labels: [...new Set([...wantedLabels(), label])].join(",") }))),
      td("schedule", el("div", { class: "cell", title: job.schedule.map((s) => s.words + (s.enabled ? "" : " (disabled)")).join("\n") }, scheduleText(job))),
      td("next time", nextMark(stand)),
      td("last", lastMark(stand)),
      ...recentCells(recent.get(job.job_id)),
      td("about", el("div", { class: "cell soft", title: job.description }, job.description.replaceAll(/[*_`]{1,3}/g, ""))),
    ];
  }

  // -- which rows are drawn --------------------------------------------------------------------------------

  let minute = Math.floor(Date.now() / 60_000);
  let drawnFrom = -1;
  let drawnTo = -1;

  function draw() {
    const top = table.getBoundingClientRect().top + heads.offsetHeight;
    const from = Math.max(0, Math.min(items.length, Math.floor(-top / ROW) - OVER));
    const to = Math.max(from, Math.min(items.length, Math.ceil((window.innerHeight - top) / ROW) + OVER));
    above.firstChild.firstChild.style.setProperty("height", `${from * ROW}px`);
    below.firstChild.firstChild.style.setProperty("height", `${(items.length - to) * ROW}px`);
    above.hidden = from === 0;
    below.hidden = to === items.length;
    rows.show(items.slice(from, to).map(unchanged));
    [...body.children].forEach((row, n) => row.setAttribute("aria-rowindex", String(from + n + 2)));
    drawnFrom = from;
    drawnTo = to;
    ask();
  }

  const held = new Map(); // key -> {text, item}: what a row was drawn of

  /** The same object for what has not changed: then its row stays as it is, and with it a click under way. */
  function unchanged(item) {
    const { key, depth, open, sum, name } = item;
    const text = JSON.stringify([depth, open, sum, name, stands.get(key), recent.get(key)?.[0], minute]);
    const old = held.get(key);
    if (old?.text === text && (old.item.job ?? old.item.folder.path) === (item.job ?? item.folder.path)) return old.item;
    if (held.size > 2000) held.clear();
    const fresh = { ...item };
    held.set(key, { text, item: fresh });
    return fresh;
  }

  const redraw = () => rows.show(items.slice(drawnFrom, drawnTo).map(unchanged));

  const ask = paced(oneAtATime(async () => {
    const wanted = items.slice(drawnFrom, drawnTo).filter((item) => item.job && (!recent.has(item.key) || outdated.has(item.key))).map((item) => item.key).slice(0, ASKED);
    if (!wanted.length) return;
    try {
      const found = (await get("/recent", { job_id: wanted }, { signal: page.left })).jobs;
      if (!page.isOpen()) return;
      for (const id of wanted) { recent.set(id, found[id] ?? []); outdated.delete(id); }
      redraw();
    } catch (error) {
      if (error.name !== "AbortError") console.warn(error.message);
    }
  }), 60);

  let queued = false;
  const onScroll = () => {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => { queued = false; if (page.isOpen()) draw(); });
  };
  window.addEventListener("scroll", onScroll, { passive: true });
  const onResize = settled(() => { if (page.isOpen()) { held.clear(); draw(); } }, 100);
  window.addEventListener("resize", onResize);
  page.leave(() => { window.removeEventListener("scroll", onScroll); window.removeEventListener("resize", onResize); });

  // -- what is known ---------------------------------------------------------------------------------

  async function loadJobs() {
    try {
      jobs = (await get("/search/jobs", {}, { signal: page.left })).jobs;
    } catch (error) {
      if (error.name !== "AbortError") notice(error.message);
      return;
    }
    if (page.isOpen()) find();
  }

  let looked = 0;
  const loadStands = oneAtATime(async () => {
    looked = Date.now();
    try {
      const found = (await get("/overview/jobs", {}, { signal: page.left })).jobs;
      for (const [id, stand] of Object.entries(found)) stands.set(id, stand);
    } catch (error) {
      if (error.name !== "AbortError") console.warn(error.message);
      return;
    }
    if (page.isOpen()) arrange();
  });

  const askServer = settled(async (text) => {
    try {
      const found = (await get("/search/jobs", { q: text }, { signal: page.left })).jobs;
      if (text !== words() || !page.isOpen()) return;
      matched = new Set(found.map((job) => job.job_id));
      arrange();
    } catch (error) {
      if (error.name !== "AbortError") notice(error.message);
    }
  }, 200);

  function find() {
    matched = null;
    if (words().trim()) askServer(words());
    arrange();
  }

  let touched = false;
  const arrangeSoon = paced(() => { if (page.isOpen()) arrange(); }, 1000); // for order, filters and sums of folders
  let stale = false;
  page.subscribe({
    message(message) {
      if (message.type.startsWith("job")) { stale = true; reloadJobs(); return; }
      if (message.type !== "run_transition") return;
      const run = message.run_summary;
      const stand = stands.get(run.job_id);
      if (run.state === "scheduled" || run.state === "new") { stale = true; return; }
      if (!stand) return;
      const number = (id) => Number(id.slice(1));
      if (!stand.last || number(run.run_id) >= number(stand.last.run_id)) {
        stands.set(run.job_id, { ...stand, last: { run_id: run.run_id, state: run.state, time: run.times[run.state] } });
      }
      if (stand.next?.run_id === run.run_id) stale = true;
      if (FINISHED.includes(run.state)) outdated.add(run.job_id);
      touched = true;
    },
    frame() {
      if (!touched) return;
      touched = false;
      redraw();
      arrangeSoon();
      ask();
    },
    refresh() { recent.clear(); loadJobs(); loadStands(); },
  });
  const reloadJobs = paced(() => { loadJobs(); loadStands(); }, 300);
  page.tick(() => {
    const now = Math.floor(Date.now() / 60_000);
    if (now !== minute) { minute = now; redraw(); } // "3 m ago"
    if (stale && Date.now() - looked > STALE) { stale = false; loadStands(); }
  });
  page.zoned(() => { held.clear(); redraw(); });

  await loadJobs();
  loadStands();
}

function crumbs(folder) {
  if (!folder) return ["Jobs"];
  const parts = folder.split("/");
  return [el("a", { href: "/jobs" }, "Jobs"), parts.map((part, n) => [" / ",
    n < parts.length - 1 ? el("a", { href: `/jobs/${encodePath(parts.slice(0, n + 1).join("/"))}` }, part) : part])];
}
