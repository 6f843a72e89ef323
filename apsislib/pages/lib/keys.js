// The keyboard: every key that does something, in one table, which `?` shows.

import { byId, el } from "./dom.js";
import { go } from "./router.js";

const PAUSE = 1500; // ms in which the second key of `g r` must follow

const bound = new Map(); // key or keys -> {help, does}
let prefix = "";
let since = 0;

/** Bind a key (as KeyboardEvent.key has it) or two in a row ("g r"); answers a function that ends it. */
export function bind(keys, help, does) {
  const mine = { help, does };
  bound.set(keys, mine);
  return () => {
    if (bound.get(keys) === mine) bound.delete(keys);
  };
}

const isTyping = (node) =>
  node.isContentEditable ||
  /^(TEXTAREA|SELECT)$/.test(node.tagName) ||
  (node.tagName === "INPUT" && !/^(checkbox|radio|button|submit)$/.test(node.type));

export function startKeys(tabs) {
  for (const { href, name, key } of tabs) bind(`g ${key}`, `Go to ${name}`, () => go(href));
  bind("/", "Search", search);
  bind("j", "Next row (Enter opens it)", () => move(1));
  bind("k", "Previous row", () => move(-1));
  bind("?", "These keys", showHelp);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented) return;
    if (event.key === "Escape" && isTyping(event.target) && event.target.closest("main")) {
      event.target.blur();
      return;
    }
    if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
    const keys = prefix && event.timeStamp - since < PAUSE ? `${prefix} ${event.key}` : event.key;
    prefix = "";
    const found = bound.get(keys);
    if (found) {
      event.preventDefault();
      found.does(event);
    } else if ([...bound.keys()].some((other) => other.startsWith(`${event.key} `))) {
      prefix = event.key;
      since = event.timeStamp;
    }
  });
}

/** To the search field of the view; where there is none, to that of Runs. */
function search() {
  const field = () => document.querySelector("main input[type=search]");
  if (field()) {
    field().focus();
    field().select();
    return;
  }
  go("/runs");
  const end = performance.now() + 2000;
  const wait = () => {
    if (field()) field().focus();
    else if (performance.now() < end) requestAnimationFrame(wait);
  };
  wait();
}

/** The focus to the next or previous row that can be opened. */
function move(step) {
  const links = [...document.querySelectorAll("main .row-link")].filter((link) => link.checkVisibility());
  if (!links.length) return;
  const row = document.activeElement?.closest("tr, li, .row");
  const at = row ? links.findIndex((link) => row.contains(link)) : -1;
  const next = at < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, at + step));
  links[next].focus();
  links[next].scrollIntoView({ block: "nearest" });
}

export function showHelp() {
  const dialog = byId("help");
  const rows = [...bound].map(([keys, { help }]) =>
    el(
      "tr",
      {},
      el(
        "td",
        {},
        keys.split(" ").flatMap((key, n) => [n ? " " : null, el("kbd", {}, key)]),
      ),
      el("td", {}, help),
    ),
  );
  dialog.replaceChildren(
    el("h2", { id: "help-title" }, "Keys"),
    el(
      "table",
      { class: "keys" },
      el(
        "tbody",
        {},
        rows,
        el(
          "tr",
          {},
          el("td", {}, el("kbd", {}, "Tab")),
          el("td", {}, "Next link, button or field: every operation is on one"),
        ),
        el("tr", {}, el("td", {}, el("kbd", {}, "Esc")), el("td", {}, "Leave a field, close a menu or dialog")),
      ),
    ),
    el("form", { method: "dialog", class: "buttons" }, el("button", { class: "primary" }, "Close")),
  );
  dialog.showModal();
}
