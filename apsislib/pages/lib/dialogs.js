// Notices, questions and menus.

import { byId, el, fill } from "./dom.js";

const SHOWN = 15_000; // ms that a notice stays

/** A sentence in the corner; errors stay until they are closed or 15 s have passed. The same one is shown once. */
export function notice(text, { kind = "error" } = {}) {
  const box = byId("notices");
  if ([...box.children].some((other) => other.dataset.text === text)) return;
  const close = el("button", { type: "button", "aria-label": "Close" }, "×");
  const node = el("div", { class: "notice", "data-kind": kind, "data-text": text },
    el("span", {}, text), close);
  close.onclick = () => node.remove();
  setTimeout(() => node.remove(), SHOWN);
  box.append(node);
}

/** Ask, and do it if the answer is yes: the dialog shows that it is being done, and what went wrong, until it is
 *  done or given up. `detail`: nodes below the question; `verb` null: there is only something to be said.
 *  Resolves to what `act` answers; null: it was not done. */
export function ask({ question, detail = [], verb, danger = false, act }) {
  const dialog = byId("dialog");
  const cancel = el("button", { type: "button" }, verb ? "Cancel" : "Close");
  const confirm = el("button", { type: "submit", id: "confirm", class: danger ? "primary danger" : "primary" }, verb);
  const wrong = el("p", { class: "wrong", role: "alert", hidden: true });
  const busy = el("progress", { hidden: true, "aria-label": "in progress" });
  const form = el("form", { method: "dialog" },
    el("p", { id: "question" }, question), detail, wrong, busy,
    el("div", { class: "buttons" }, cancel, verb ? confirm : null));
  fill(dialog, form);
  return new Promise((resolve) => {
    let result = null;
    let acting = false;
    cancel.onclick = () => dialog.close();
    dialog.oncancel = (event) => { if (acting) event.preventDefault(); };
    dialog.onclose = () => resolve(result);
    form.onsubmit = async (event) => {
      event.preventDefault();
      if (acting || !verb) return;
      acting = confirm.disabled = cancel.disabled = true;
      wrong.hidden = true;
      busy.hidden = false;
      try {
        result = (await act()) ?? true;
        dialog.close();
      } catch (error) {
        fill(wrong, error.message);
        wrong.hidden = false;
        acting = confirm.disabled = cancel.disabled = false;
        busy.hidden = true;
        fill(confirm, "Try again");
        confirm.focus();
      }
    };
    dialog.showModal();
    (danger || !verb ? cancel : confirm).focus();
  });
}

/** A button that opens a menu. `items()` answers [[label, does, {danger}]]; an empty list: nothing to do. */
export function menuButton(label, items, { text = "⋯", cls = "icon" } = {}) {
  const button = el("button", { type: "button", class: cls, "aria-label": label, "aria-haspopup": "menu",
    "aria-expanded": "false", title: label }, text);
  button.onclick = () => openMenu(button, items());
  button.onkeydown = (event) => { if (event.key === "ArrowDown") { event.preventDefault(); button.click(); } };
  return button;
}

let closeOpen = null;

function openMenu(button, items) {
  if (button.getAttribute("aria-expanded") === "true") { closeOpen?.(); return; }
  closeOpen?.();
  const menu = el("div", { class: "menu", role: "menu", "aria-label": button.getAttribute("aria-label") });
  const entries = items.map(([label, does, { danger = false } = {}]) => el("button", {
    type: "button", role: "menuitem", tabIndex: -1, class: danger ? "danger" : "",
    onclick: () => { close(); does(); },
  }, label));
  menu.append(...(entries.length ? entries : [el("div", { class: "soft", role: "menuitem", tabIndex: -1 }, "nothing can be done now")]));
  function close(refocus = true) {
    closeOpen = null;
    document.removeEventListener("pointerdown", outside, true);
    window.removeEventListener("scroll", moved, true);
    menu.remove();
    button.setAttribute("aria-expanded", "false");
    if (refocus && button.isConnected) button.focus();
  }
  const outside = (event) => { if (!menu.contains(event.target) && event.target !== button) close(false); };
  const moved = () => close(false);
  menu.onkeydown = (event) => {
    const all = [...menu.children];
    const at = all.indexOf(document.activeElement);
    const to = { ArrowDown: (at + 1) % all.length, ArrowUp: (at + all.length - 1) % all.length, Home: 0, End: all.length - 1 }[event.key];
    if (to !== undefined) { event.preventDefault(); all[to].focus(); } else if (event.key === "Escape" || event.key === "Tab") {
      event.preventDefault();
      close();
    }
    event.stopPropagation();
  };
  closeOpen = close;
  button.setAttribute("aria-expanded", "true");
  (button.closest("main, header") ?? document.body).append(menu);
  const at = button.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  const below = at.bottom + height + 6 < window.innerHeight || at.top < height;
  menu.style.setProperty("left", `${Math.max(6, Math.min(at.right - width, window.innerWidth - width - 6))}px`);
  menu.style.setProperty("top", `${below ? at.bottom + 4 : at.top - height - 4}px`);
  menu.firstChild.focus({ preventScroll: true });
  document.addEventListener("pointerdown", outside, true);
  window.addEventListener("scroll", moved, true);
}
