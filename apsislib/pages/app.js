// The page of Apsis: the table of views, and what stands around them. lib/router.js says how a view is written.

import { startBoard } from "./lib/board.js";
import { byId, el, kept } from "./lib/dom.js";
import { showHelp, startKeys } from "./lib/keys.js";
import { startLive } from "./lib/live.js";
import { showZone, startRouter, tickNow } from "./lib/router.js";
import { chooseZone, offset, showTime, startZone, zoneName, zones } from "./lib/times.js";

const TABS = [
  { href: "/", name: "Today", key: "t" },
  { href: "/runs", name: "Runs", key: "r" },
  { href: "/jobs", name: "Jobs", key: "j" },
  { href: "/agents", name: "Agents", key: "a" },
  { href: "/server", name: "Server", key: "s" },
];

const VIEWS = [
  { path: /^\/(?:index\.html|today\/?)?$/, load: () => import("./views/today.js"), tab: "/" },
  { path: /^\/runs\/?$/, load: () => import("./views/runs.js"), tab: "/runs" },
  { path: /^\/runs\/([^/]+)\/?$/, load: () => import("./views/run.js"), tab: "/runs" },
  { path: /^\/jobs(?:\/(.*))?$/, load: () => import("./views/jobs.js"), tab: "/jobs" },
  { path: /^\/job\/(.+)$/, load: () => import("./views/job.js"), tab: "/jobs" },
  { path: /^\/agents\/?$/, load: () => import("./views/agents.js"), tab: "/agents" },
  { path: /^\/server\/?$/, load: () => import("./views/server.js"), tab: "/server" },
];

function startTabs() {
  byId("tabs").append(...TABS.map(({ href, name, key }) => el("a", { href, title: `g ${key}` }, name)));
}

function startClock() {
  const clock = byId("clock");
  const tick = () => { clock.textContent = `${showTime(new Date())} ${offset()}`; };
  setInterval(tick, 1000);
  tick();
  const choice = byId("zone");
  const [often, others] = zones();
  const options = (names) => names.map((name) => el("option", { value: name }, name.replaceAll("_", " ")));
  choice.append(...options(often), el("optgroup", { label: "All zones" }, options(others)));
  choice.value = zoneName();
  choice.onchange = () => { chooseZone(choice.value); tick(); tickNow(); showZone(); };
}

const THEMES = { system: "As the system has it", light: "Light", dark: "Dark" };

function startTheme() {
  const button = byId("theme");
  const show = () => {
    const theme = document.documentElement.dataset.theme ?? "system";
    button.dataset.shown = theme;
    button.title = button.ariaLabel = `Theme: ${THEMES[theme]}`;
  };
  button.onclick = () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % names.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    kept.set("theme", next);
    show();
  };
  show();
}

startZone();
startTabs();
startClock();
startTheme();
byId("help-button").onclick = showHelp;
startLive();
startBoard();
startKeys(TABS);
startRouter(VIEWS);
