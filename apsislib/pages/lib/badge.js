// What the tab says from afar: the title, with the number of jobs that fail, and the icon.

import { isLive } from "./live.js";

let text = "";
let failing = 0;
let shown = "";

export function titled(title) {
  text = title;
  show();
}

/** How many jobs fail. */
export function setFailing(count) {
  failing = count;
  show();
}

function show() {
  const count = failing ? `(${failing > 99 ? "99+" : failing}) ` : "";
  document.title = `${count}${text ? `${text} – ` : ""}Apsis`;
  const icon = !isLive() && shown ? "icon-stale.svg" : failing ? "icon-failing.svg" : "icon.svg";
  if (icon === shown) return;
  shown = icon;
  const link = document.querySelector("link[rel=icon]");
  link.href = new URL(`../${icon}`, import.meta.url).pathname;
}

document.addEventListener("apsis-live", show);
