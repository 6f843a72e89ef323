// What can be done with a run. Each asks, shows that it is being done, and shows what went wrong.

import { post } from "./api.js";
import { ask, notice } from "./dialogs.js";
import { el } from "./dom.js";
import { go } from "./router.js";
import { FINISHED } from "./times.js";

const OPERATIONS = {
  scheduled: ["start", "skip"],
  waiting: ["start", "skip"],
  starting: ["stop"],
  running: ["stop", "terminate", "kill"],
  stopping: ["terminate", "kill"],
};
const ADDRESS = { terminate: "signal/SIGTERM", kill: "signal/SIGKILL" };
const DANGER = ["stop", "terminate", "kill", "skip"];
const DETAIL = {
  start: "It starts now, whatever it waits for.",
  skip: "It will not run; jobs that depend on its success will go on waiting.",
  terminate: "SIGTERM is sent to its program.",
  kill: "SIGKILL is sent to its program, which cannot clean up.",
};

/** In which state its program may still be, of a run that was given up; else undefined. */
function adrift({ state, meta }) {
  const was = meta?.given_up;
  if (!was || meta.late_verdict || !FINISHED.includes(state)) return undefined;
  return was.state === "stopping" || was.stop_asked ? "stopping" : "running";
}

export const verbsOf = (run) => OPERATIONS[run.state]
  ?? (FINISHED.includes(run.state) ? [...(OPERATIONS[adrift(run)] ?? []), "rerun"] : []);
export const marksOf = (run) => (FINISHED.includes(run.state) ? FINISHED.filter((state) => state !== run.state) : []);

const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** Where who does something may say why: [nodes, () => what is said, or null]. */
export function whyField() {
  const input = el("input", { type: "text", maxLength: 500, autocomplete: "off" });
  return [el("label", { class: "field" }, el("span", {}, "Reason, for the log"), input), () => input.value.trim() || null];
}

const query = (why) => (why === null ? "" : `?${new URLSearchParams({ reason: why })}`);

/** Ask, then do it. Resolves to the server's answer, null if it was not done. */
export function operate(run, verb) {
  const [field, why] = whyField();
  const when = { stop: "is stopped at once, or when its agent is back", terminate: "is sent SIGTERM if its agent is connected",
    kill: "is sent SIGKILL if its agent is connected" }[verb];
  const detail = when && adrift(run) ? `The run was given up, and stays ${run.state}. Its program may still run: it ${when}.` : DETAIL[verb];
  return ask({
    question: `${capital(verb)} run ${run.run_id} of ${run.job_id}?`,
    detail: [detail ? el("p", { class: "soft" }, detail) : null, field],
    verb: capital(verb),
    danger: DANGER.includes(verb),
    act: async () => {
      const answer = await post(`/runs/${run.run_id}/${ADDRESS[verb] ?? verb}${query(why())}`);
      if (answer.show_run_id) queueMicrotask(() => go(`/runs/${answer.show_run_id}`));
      return answer;
    },
  });
}

export function mark(run, state) {
  const [field, why] = whyField();
  return ask({
    question: `Mark run ${run.run_id} of ${run.job_id} as ${state}?`,
    detail: [el("p", { class: "soft" }, `It is ${run.state} now. Its actions for ${state} are done, and what depends on it is judged anew.`), field],
    verb: "Mark",
    act: () => post(`/runs/${run.run_id}/mark/${state}${query(why())}`),
  });
}

/** [[label, does, options]] for a menu. */
export function menuItems(run) {
  return [
    ...verbsOf(run).map((verb) => [capital(verb), () => operate(run, verb), { danger: DANGER.includes(verb) }]),
    ...marksOf(run).map((state) => [`Mark as ${state}`, () => mark(run, state)]),
    ["Copy the run’s ID", () => navigator.clipboard?.writeText(run.run_id).catch(() => notice("The clipboard cannot be written."))],
  ];
}

/** Buttons for the head of a run's own page. */
export function buttons(run) {
  const found = verbsOf(run).map((verb) => el("button", {
    type: "button", class: DANGER.includes(verb) ? "danger" : "", onclick: () => operate(run, verb) }, verb));
  const states = marksOf(run);
  if (states.length) {
    const choice = el("select", { "aria-label": "Mark as" }, el("option", { value: "" }, "mark as…"),
      states.map((state) => el("option", { value: state }, state)));
    choice.onchange = () => { const state = choice.value; choice.value = ""; mark(run, state); };
    found.push(choice);
  }
  return found;
}
