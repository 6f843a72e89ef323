// Jobs: all of them, found by words.

import { get } from "../lib/api.js";
import { notice } from "../lib/dialogs.js";
import { el, fill, oneAtATime } from "../lib/dom.js";
import { chips, jobLink } from "../lib/marks.js";
import { table, td } from "../lib/tables.js";

export async function mount(main, page) {
  page.title("Jobs");
  const input = el("input", { type: "search", placeholder: "words of a job, its labels or its program",
    value: page.query.get("q") || "", "aria-label": "Find jobs" });
  const { whole, body } = table(["Job", "Params", "Schedule", "Program"]);
  const empty = el("p", { class: "empty", hidden: true }, "No jobs.");
  main.append(el("h1", {}, "Jobs"), el("div", { class: "bar" }, el("div", { class: "grow" }, input)),
    el("section", { class: "flush" }, whole, empty));
  let jobs = [];

  function show() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (job) => `${job.job_id} ${job.metadata.labels.join(" ")} ${job.program.str}`.toLowerCase();
    const found = jobs.filter((job) => words.every((word) => text(job).includes(word)));
    fill(body, found.map((job) => el("tr", {},
      td("wide", jobLink(job.job_id, "row-link"), chips(job.metadata.labels)),
      td("args", job.params.join(", ")),
      td("", job.schedule.map((s) => el("div", { class: s.enabled ? "" : "soft" }, s.enabled ? s.str : `${s.str} (disabled)`))),
      td("mono wide", job.program.str))));
    empty.hidden = found.length > 0;
  }

  const load = oneAtATime(async () => {
    try {
      jobs = (await get("/jobs", {}, { signal: page.left })).sort((a, b) => (a.job_id < b.job_id ? -1 : 1));
      show();
    } catch (error) {
      if (error.name !== "AbortError") notice(error.message);
    }
  });
  input.oninput = () => {
    show();
    history.replaceState(null, "", input.value ? `/jobs?q=${encodeURIComponent(input.value)}` : "/jobs");
  };
  page.subscribe({ message: (m) => { if (m.type.startsWith("job")) load(); }, refresh: load });
  await load();
}
