// Agents: who is connected.

import { call } from "../lib/api.js";
import { el, fill, oneAtATime } from "../lib/dom.js";
import { timeMark } from "../lib/marks.js";
import { table, td } from "../lib/tables.js";

export async function mount(main, page) {
  page.title("Agents");
  const box = el("div", {});
  main.append(el("h1", {}, "Agents"), box);
  const load = oneAtATime(async () => {
    try {
      const groups = await call("GET", "/api/procstar/groups");
      const names = Object.keys(groups).sort();
      fill(box, names.map((name) => {
        const { whole, body } = table(["Host", "User", "State", "Connected since", "Connection"], { caption: name });
        body.append(...groups[name].map((c) => el("tr", {},
          td("", c.info.proc?.hostname || c.info.socket?.address || ""),
          td("", c.info.proc?.username || ""),
          td("", c.info.stats.connected ? c.shutdown_state : "away"),
          td("time", timeMark(c.info.stats.last_connect_time, { full: true })),
          td("mono soft", c.info.conn.conn_id))));
        return el("div", {}, el("h2", { class: "over" }, name), el("section", { class: "flush" }, whole));
      }));
      if (!names.length) fill(box, el("section", {}, el("p", { class: "empty" }, "No agents are connected.")));
    } catch (error) {
      fill(box, el("section", { role: "alert" }, error.message));
    }
  });
  page.subscribe({ message: (m) => { if (m.type.startsWith("agent")) load(); }, refresh: load });
  await load();
}
