// Making elements. Texts of jobs, runs and programs become text nodes, never markup.

/** An element. `props` are properties, or attributes where the name has a `-` or is `role`, `for`;
 *  `class` is the class. Children: nodes, texts, lists of them; null and undefined are left out. */
export function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (key === "class") node.className = value;
    else if (key.includes("-") || key === "role" || key === "for") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...kids(children));
  return node;
}

/** An element of SVG; everything in `attributes` is an attribute, so nothing needs an inline style. */
export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...kids(children));
  return node;
}

const kids = (children) => children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);

export const byId = (id) => document.getElementById(id);

/** Put these in place of what is in `node`. */
export const fill = (node, ...children) => node.replaceChildren(...kids(children));

/** A text as part of an address, slashes kept: a job ID. */
export const encodePath = (text) => text.split("/").map(encodeURIComponent).join("/");

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** What `does` with the last of several calls, once none has come for `ms`. */
export function settled(does, ms) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => does(...args), ms);
  };
}

/** What `does` once `ms` after the first of any number of calls: also while they never stop coming. */
export function paced(does, ms) {
  let timer = null;
  return () => {
    timer ??= setTimeout(() => { timer = null; does(); }, ms);
  };
}

/** At most one call of the async `does` at a time; what asks meanwhile gets one more call at its end. */
export function oneAtATime(does) {
  let busy = false;
  let again = false;
  return async function run() {
    if (busy) { again = true; return; }
    busy = true;
    try { await does(); } finally { busy = false; }
    if (again) { again = false; run(); }
  };
}

/** localStorage, or nothing where it is off: then a choice lasts as long as the page. */
export const kept = {
  get(name) { try { return localStorage.getItem(name); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, value); } catch { /* it is off */ } },
};
