// Which address is which view, and moving between them.
//
// HOW A VIEW IS WRITTEN. A view is a file in views/ and one line in the table of app.js:
//
//     { path: /^\/job\/(.+)$/, load: () => import("./views/job.js"), tab: "/jobs" }
//
// The file exports mount(main, page). `main` is an empty <main> to append to; `page` has
//     params   what the parentheses of `path` matched, percent-decoded
//     query    URLSearchParams of the address
//     title(text)          sets the title of the tab
//     subscribe(does)      live changes: {message(m), frame(), refresh()}, see live.js; ends with the view
//     tick(does)           called each second
//     leave(does)          called when the view is left: end what you have begun (unmount)
//     requery(does)        called with the new URLSearchParams when only the query changes; without it the
//                          view is mounted anew
//     zoned(does)          called when the time zone changes; without it the view is mounted anew
//     left                 an AbortSignal for fetches, aborted when the view is left
//     isOpen()             false once it was left: look after each await
// mount may be async; what it throws is shown as the view's error. Links between views are plain <a href>.
// A list's rows are walked with j and k if each has one element of the class `row-link`.
// Style comes from classes (style/), or `node.style.setProperty`; never a style attribute: the CSP refuses it.

import { API, call } from "./api.js";
import { titled } from "./badge.js";
import { byId, el } from "./dom.js";
import { subscribe } from "./live.js";

let views = [];
let current = null;
let ticking = [];

/** Begin with the address as it is. `table`: the views, in the order in which they are tried. */
export function startRouter(table) {
  views = table;
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href]");
    const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
    if (!link || !plain || event.defaultPrevented || link.download || link.target) return;
    const href = link.getAttribute("href") ?? "";
    const url = new URL(href, location.href);
    if (url.origin !== location.origin || url.pathname.startsWith("/api/") || href.startsWith("#")) return;
    event.preventDefault();
    go(url.href);
  });
  window.addEventListener("popstate", () => show());
  setInterval(tickNow, 1000);
  show();
}

/** To another address, as if a link had been followed; `replace`: without a step to go back. */
export function go(address, { replace = false } = {}) {
  const path = location.pathname;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  show();
  if (location.pathname !== path) {
    window.scrollTo(0, 0);
    byId("main").focus({ preventScroll: true });
  }
}

export function tickNow() {
  for (const does of ticking) does();
}

/** The zone has changed: all times that are shown. */
export function showZone() {
  if (current?.zoned) current.zoned();
  else show(true);
}

function find(pathname) {
  for (const view of views) {
    const match = view.path.exec(pathname);
    if (match) return [view, match.slice(1).map(decoded)];
  }
  return [null, []];
}

function decoded(text) {
  try { return text === undefined ? text : decodeURIComponent(text); } catch { return text; }
}

function show(anew = false) {
  const [view, params] = find(location.pathname);
  const query = new URLSearchParams(location.search);
  if (!anew && current?.requery && current.pathname === location.pathname) {
    current.requery(query);
    return;
  }
  leaveCurrent();
  const main = el("main", { id: "main", tabIndex: -1 });
  byId("main").replaceWith(main);
  for (const link of document.querySelectorAll("nav a")) {
    if (view && link.getAttribute("href") === view.tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!view) {
    titled("No such page");
    main.append(el("h1", {}, "There is no such page."), el("p", {}, el("a", { href: "/" }, "Today")));
    return;
  }
  mount(view, main, params, query);
}

function leaveCurrent() {
  const page = current;
  current = null;
  ticking = [];
  page?.end();
}

async function mount(view, main, params, query) {
  const ended = new AbortController();
  const leaving = [];
  const mine = {
    pathname: location.pathname,
    requery: null,
    zoned: null,
    end() {
      ended.abort();
      for (const does of leaving) does();
    },
  };
  current = mine;
  const page = {
    params,
    query,
    left: ended.signal,
    isOpen: () => current === mine,
    title: (text) => { if (current === mine) titled(text); },
    leave: (does) => (current === mine ? leaving.push(does) : does()),
    subscribe: (does) => page.leave(subscribe(does)),
    tick: (does) => { if (current === mine) ticking.push(does); },
    requery: (does) => { mine.requery = does; },
    zoned: (does) => { mine.zoned = does; },
  };
  try {
    const module = await loaded(view);
    if (current === mine) await module?.mount(main, page);
  } catch (error) {
    if (current !== mine || error.name === "AbortError") return;
    console.error(error);
    main.append(el("section", { role: "alert" }, el("h1", {}, "This page cannot be shown"), el("p", {}, error.message)));
  }
}

/** The view's module. Where it cannot be had though the server answers, the server has been renewed meanwhile: the
 *  whole page is loaded anew, once. */
async function loaded(view) {
  try {
    const module = await view.load();
    sessionStorage.removeItem("renewed");
    return module;
  } catch (error) {
    await call("GET", `${API}/alive`);
    if (sessionStorage.getItem("renewed")) throw error;
    sessionStorage.setItem("renewed", "yes");
    location.reload();
    return null;
  }
}
