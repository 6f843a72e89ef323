// Today: the operator's board.

import { active, failing, watch } from "../lib/board.js";
import { el, fill } from "../lib/dom.js";
import { alarmMarks, argsMark, jobLink, runLink, stateMark, timeMark } from "../lib/marks.js";
import { Rows, table, td } from "../lib/tables.js";
import { elapsed } from "../lib/times.js";

const newest = (runs) => [...runs].sort((a, b) => Number(b.run_id.slice(1)) - Number(a.run_id.slice(1)));

export function mount(main, page) {
  page.title("Today");
  const lists = [["Failing", failing, "Nothing has failed in the last day."], ["Active", active, "Nothing is running or waiting."]];
  const boxes = lists.map(([name, runs, none]) => {
    const { whole, body } = table(["Run", "State", "Job", "Args", "Start", { text: "Elapsed", cls: "num" }], { caption: name });
    const rows = new Rows(body, {
      key: (run) => run.run_id,
      cells: (run) => [
        td("", runLink(run.run_id, "mono row-link")), td("", stateMark(run.state), alarmMarks(run)), td("wide", jobLink(run.job_id)),
        td("", argsMark(run.args)), td("time", timeMark(run.times.running)), td("num", elapsed(run))],
    });
    const empty = el("p", { class: "empty" }, none);
    main.append(el("h2", { class: "over" }, name), el("section", { class: "flush" }, whole, empty));
    return () => {
      rows.show(newest(runs.values()));
      whole.hidden = !runs.size;
      empty.hidden = runs.size > 0;
      for (const run of runs.values()) fill(rows.node(run.run_id).lastElementChild, elapsed(run));
    };
  });
  main.prepend(el("h1", {}, "Today"));
  const show = () => { for (const box of boxes) box(); };
  page.leave(watch(show));
  page.tick(show);
  show();
}
