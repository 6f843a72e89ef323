// One job.

import { get, post } from "../lib/api.js";
import { notice } from "../lib/dialogs.js";
import { el, fill } from "../lib/dom.js";
import { chips, objectFacts, runLink, section } from "../lib/marks.js";
import { runsList } from "../lib/runslist.js";

export async function mount(main, page) {
  const [jobId] = page.params;
  page.title(jobId);
  main.append(el("h1", {}, jobId));
  let job = null;
  try {
    job = await get(`/jobs/${encodeURIComponent(jobId)}`, {}, { signal: page.left });
  } catch (error) {
    if (!page.isOpen()) return;
    main.append(el("section", {}, error.status === 404 ? "There is no such job now. Its past runs are below." : error.message));
  }
  if (!page.isOpen()) return;
  if (job) {
    main.querySelector("h1").append(...chips(job.metadata.labels));
    if (job.metadata.description) main.append(el("section", {}, el("dd", {}, job.metadata.description)));
    main.append(el("div", { class: "columns" },
      section("Program", objectFacts(job.program)),
      el("div", {},
        section("Schedules", lines(job.schedule.map((s) => s.str + (s.enabled ? "" : " (disabled)")))),
        section("Conditions", lines(job.condition.map((c) => c.str))),
        section("Actions", lines(job.action.map((a) => a.str))),
        scheduleForm(job))));
  }
  main.append(el("h2", { class: "over" }, "Runs"), runsList(page, { job_id: jobId }, { job: false }));
}

function lines(texts) {
  return texts.length ? texts.map((text) => el("div", {}, text)) : el("div", { class: "soft" }, "none");
}

function scheduleForm(job) {
  const fields = job.params.map((name) => [name, el("input", { type: "text", autocomplete: "off" })]);
  const when = el("input", { type: "text", value: "now" });
  const button = el("button", { type: "submit", class: "primary" }, "Schedule");
  const answer = el("span", { role: "status" });
  const form = el("form", {},
    fields.map(([name, input]) => el("label", { class: "field" }, el("span", {}, name), input)),
    el("label", { class: "field" }, el("span", {}, "when (now, or a time such as 2031-05-06T07:00:00Z)"), when),
    el("div", { class: "buttons" }, answer, button));
  form.onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const args = Object.fromEntries(fields.map(([name, input]) => [name, input.value]));
      const made = await post("/runs", { job_id: job.job_id, args, times: { schedule: when.value.trim() } });
      fill(answer, "scheduled ", runLink(Object.keys(made.runs)[0]));
    } catch (error) {
      notice(error.message);
    }
    button.disabled = false;
  };
  return section("Schedule a run", form);
}
