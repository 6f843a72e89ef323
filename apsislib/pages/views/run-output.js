// The output of a run: live, coloured, searched, followed, wrapped, numbered; a window on as much as there is.

import { API, get } from "../lib/api.js";
import { notice } from "../lib/dialogs.js";
import { el, fill, kept, settled } from "../lib/dom.js";
import { bind } from "../lib/keys.js";
import { bytes } from "../lib/times.js";
import { drawSpans } from "./run-text.js";
import { BLOCK, Output } from "./run-window.js";

const MOST = 6 * BLOCK; // bytes of the window
const NEAR = 800; // px from an end of the window at which it grows there

/** {box, grown(length), ended()}. `page`: of the view; `name`: how the output is called. */
export function outputView(page, runId, outputId, name) {
  const address = `/runs/${encodeURIComponent(runId)}/output/${encodeURIComponent(outputId)}`;
  const output = new Output(address, 0);
  const state = {
    follow: true,
    wrap: kept.get("output-wrap") !== "no",
    numbers: kept.get("output-numbers") !== "no",
    query: "",
    found: null, // [byte, size] of the match that was gone to
    busy: false,
    live: true,
  };

  const pane = el("div", { class: "output", tabIndex: 0, role: "region", "aria-label": `Output: ${name}` });
  const empty = el("p", { class: "empty" }, "Nothing printed yet.");
  const field = el("input", { type: "search", placeholder: "Search the output", "aria-label": "Search the output",
    title: "Enter: next · Shift+Enter: previous" });
  const said = el("span", { class: "soft said", role: "status" });
  const place = el("span", { class: "soft place" });
  const slider = el("input", { type: "range", min: 0, max: 1000, value: 1000, "aria-label": "Position in the output", hidden: true });
  const toggle = (label, title, on, does) => el("button", { type: "button", class: "toggle", title, "aria-pressed": String(on), onclick: does }, label);
  const follow = toggle("Follow", "Stay at the end as it grows (f)", true, () => setFollow(!state.follow));
  const wrap = toggle("Wrap", "Break long lines (w)", state.wrap, () => {
    state.wrap = !state.wrap;
    kept.set("output-wrap", state.wrap ? "yes" : "no");
    dress();
  });
  const numbers = toggle("Numbers", "Number the lines", state.numbers, () => {
    state.numbers = !state.numbers;
    kept.set("output-numbers", state.numbers ? "yes" : "no");
    dress();
    if (state.numbers) showNumbers();
  });
  const line = el("input", { type: "text", inputMode: "numeric", class: "line-field", "aria-label": "Go to line", placeholder: "line" });
  const download = el("a", { href: `${API}${address}`, download: "", class: "button" }, "Download");
  const bar = el("div", { class: "output-bar" },
    el("div", { class: "find" }, field,
      el("button", { type: "button", class: "icon", "aria-label": "Previous match", title: "Previous match (Shift+Enter)", onclick: () => search(true) }, "↑"),
      el("button", { type: "button", class: "icon", "aria-label": "Next match", title: "Next match (Enter)", onclick: () => search(false) }, "↓"),
      said),
    el("div", { class: "set" }, follow, wrap, numbers, line,
      el("button", { type: "button", onclick: () => goTo(0) , title: "To the beginning" }, "Top"),
      el("button", { type: "button", onclick: () => setFollow(true), title: "To the end" }, "End"),
      download));
  const foot = el("div", { class: "output-foot" }, place, slider);
  const box = el("section", { class: "flush output-box" },
    el("div", { class: "output-head" }, el("h2", {}, "Output"), bar), pane, foot);
  pane.append(empty);
  dress();

  // -- drawing -----------------------------------------------------------------------------------

  function dress() {
    pane.classList.toggle("wrapped", state.wrap);
    pane.classList.toggle("numbered", state.numbers);
    follow.setAttribute("aria-pressed", String(state.follow));
    wrap.setAttribute("aria-pressed", String(state.wrap));
    numbers.setAttribute("aria-pressed", String(state.numbers));
  }

  function drawLine(item) {
    const node = el("div", { class: "line" });
    node.append(...drawSpans(item.spans, state.query));
    if (!node.firstChild) node.append("\u200b"); // an empty line is as tall as others
    if (state.found && item.at <= state.found[0] && state.found[0] < item.at + item.size) node.classList.add("found");
    item.node = node;
    return node;
  }

  function drawBlock(block, from = 0) {
    block.node ??= el("div", { class: "block" });
    while (block.node.children.length > from) block.node.lastChild.remove();
    block.node.append(...block.lines.slice(from).map(drawLine));
    label(block);
    return block.node;
  }

  function label(block) {
    let number = block.first;
    let continued = false;
    for (const item of block.lines) {
      const text = number === null || continued ? "" : String(number + 1);
      if (item.node && item.node.dataset.n !== text) item.node.dataset.n = text;
      continued = !item.ended;
      if (item.ended && number !== null) number += 1;
    }
  }

  function drawAll() {
    fill(pane, output.blocks.map((block) => { block.node = null; return drawBlock(block); }));
    if (!output.length) pane.append(empty);
    widen();
  }

  function redrawLines() {
    for (const block of output.blocks) for (const item of block.lines) item.node.replaceWith(drawLine(item));
    output.blocks.forEach(label);
  }

  /** Room for the longest number. */
  function widen() {
    const last = output.blocks.at(-1);
    const most = last?.first != null ? last.first + last.lines.length : 999;
    pane.style.setProperty("--digits", String(Math.max(3, String(most).length)));
  }

  // -- moving the window ---------------------------------------------------------------------------

  const ask = (start) => get(`${address}/lines`, { start }, { signal: page.left });

  async function showNumbers() {
    if (!state.numbers) return;
    try {
      await output.number(ask, page.left);
      output.blocks.forEach(label);
      widen();
      showPlace();
      if (output.blocks[0]?.first != null) await output.count(output.length, ask);
      showPlace();
    } catch (error) { complain(error); }
  }

  function complain(error) {
    if (error.name !== "AbortError") notice(error.message);
  }

  /** One thing at a time: what comes meanwhile is looked at afterwards. */
  let work = Promise.resolve();
  function inTurn(does) {
    work = work.then(() => (page.isOpen() ? does() : null)).catch(complain);
    return work;
  }

  const atBottom = () => pane.scrollHeight - pane.scrollTop - pane.clientHeight < 30;

  /** Show what is around a byte; the line that holds it is brought to the middle (or the top, of the beginning). */
  const goTo = (at, { middle = false } = {}) => inTurn(async () => {
    setFollowing(false);
    if (!(output.blocks.length && output.start <= at && at < output.end)) {
      if (!(await output.jump(at, page.left))) return;
      drawAll();
    }
    const item = find(at);
    if (item && middle) pane.scrollTop = item.node.offsetTop - pane.clientHeight / 2;
    else if (item) pane.scrollTop = at === 0 ? 0 : item.node.offsetTop;
    quiet = performance.now() + 150;
    await fillUp();
    showNumbers();
    showPlace();
  });

  function find(at) {
    for (const block of output.blocks) {
      if (block.start <= at && at < block.end) return block.lines.findLast((item) => item.at <= at);
    }
    return output.blocks.at(-1)?.lines.at(-1);
  }

  function setFollowing(on) {
    state.follow = on;
    dress();
  }

  function setFollow(on) {
    setFollowing(on);
    if (on) toEnd();
  }

  const toEnd = () => inTurn(async () => {
    if (!output.length) return;
    if (!output.blocks.length || output.length - output.end > MOST) {
      if (!(await output.jump(output.length, page.left))) return;
      drawAll();
    }
    await growLater();
    if (state.follow) pane.scrollTop = pane.scrollHeight;
    await fillUp();
    showNumbers();
    showPlace();
  });

  /** Whatever follows what is shown, as far as the window may reach. */
  async function growLater(most = Infinity) {
    let grown = 0;
    for (let made = true; made && grown < most && output.end < output.length;) {
      made = await output.later(page.left);
      if (!made) break;
      grown += 1;
      empty.remove();
      if (made.block.node) drawBlock(made.block, made.from);
      else pane.append(drawBlock(made.block));
      prune(true);
    }
    if (grown) widen();
    return grown > 0;
  }

  function prune(fromStart) {
    const before = pane.scrollTop;
    let height = 0;
    for (const block of output.cut(MOST, fromStart)) {
      if (fromStart) height += block.node.offsetHeight;
      block.node.remove();
    }
    if (height) pane.scrollTop = before - height;
  }

  async function growEarlier() {
    const block = await output.earlier(page.left);
    if (!block) return false;
    const before = pane.scrollTop;
    pane.prepend(drawBlock(block));
    pane.scrollTop = before + block.node.offsetHeight;
    prune(false);
    return true;
  }

  /** More at either end, if an end of the window is near. */
  async function fillUp() {
    if (pane.scrollTop < NEAR && output.start > 0) await growEarlier();
    if (pane.scrollHeight - pane.scrollTop - pane.clientHeight < NEAR && output.end < output.length) await growLater(2);
  }

  let quiet = 0; // until when a scroll is our doing
  let queued = false;
  let last = 0;
  pane.addEventListener("scroll", () => {
    const up = pane.scrollTop < last;
    last = pane.scrollTop;
    if (performance.now() > quiet) {
      if (state.follow && up && !atBottom()) setFollowing(false);
      else if (!state.follow && state.live && !up && atBottom() && output.atEnd) setFollowing(true);
    }
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => { queued = false; inTurn(async () => { await fillUp(); showPlace(); if (output.blocks[0]?.first == null) showNumbers(); }); });
  });

  function showPlace() {
    const parts = [];
    const top = topLine();
    if (output.total?.lines && top) parts.push(`line ${(top.number + 1).toLocaleString("en")} of ${output.total.lines.toLocaleString("en")}`);
    parts.push(bytes(output.length));
    fill(place, parts.join(" · "));
    slider.hidden = output.size >= output.length;
    if (!slider.hidden && document.activeElement !== slider) {
      const at = state.follow ? output.length : top ? top.item.at : output.start;
      slider.value = String(Math.round((at / Math.max(1, output.length)) * 1000));
    }
  }

  function topLine() {
    for (const block of output.blocks) {
      if (!block.node || block.node.offsetTop + block.node.offsetHeight <= pane.scrollTop) continue;
      let number = block.first;
      for (const item of block.lines) {
        if (item.node.offsetTop + item.node.offsetHeight > pane.scrollTop) return { item, number: number ?? 0 };
        if (item.ended && number !== null) number += 1;
      }
    }
    return null;
  }

  slider.addEventListener("input", settled(() => {
    const part = Number(slider.value) / 1000;
    if (part >= 1) setFollow(true);
    else goTo(Math.floor(part * output.length));
  }, 60));

  line.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const wanted = Number(line.value.replaceAll(/[\s,._]/g, ""));
    if (!Number.isInteger(wanted) || wanted < 1) { notice(`no line number: ${line.value}`); return; }
    fill(said, "counting lines…");
    output.lineStart(wanted - 1, ask, page.left, (part) => fill(said, `counting lines… ${Math.round(part * 100)} %`)).then((at) => {
      fill(said);
      state.found = [at, 0];
      return goTo(at, { middle: true }).then(() => inTurn(async () => redrawLines()));
    }).catch(complain);
  });

  // -- searching -------------------------------------------------------------------------------------

  let searching = null; // AbortController of the search under way

  async function search(back) {
    const query = field.value;
    searching?.abort();
    if (!query) { state.query = ""; state.found = null; fill(said); redrawLines(); return; }
    if (query !== state.query) { state.query = query; state.found = null; redrawLines(); }
    const ended = new AbortController();
    searching = ended;
    const signal = AbortSignal.any([ended.signal, page.left]);
    const top = topLine();
    let start = state.found ? state.found[0] + (back ? 0 : 1) : back ? output.length : top && !state.follow ? top.item.at : 0;
    let around = false;
    try {
      for (;;) {
        const answer = await get(`${address}/search`, { q: query, start, back, limit: 1 }, { signal });
        if (answer.matches.length) {
          [state.found] = answer.matches;
          fill(said, around ? (back ? "from the end again" : "from the beginning again") : "");
          await goTo(state.found[0], { middle: true });
          await inTurn(async () => redrawLines());
          return;
        }
        if (answer.next === null) {
          if (around || (back ? start >= output.length && !state.found : start === 0)) { fill(said, "not found"); state.found = null; redrawLines(); return; }
          around = true;
          start = back ? output.length : 0;
          continue;
        }
        start = answer.next;
        const part = back ? 1 - start / answer.length : start / answer.length;
        fill(said, `searching… ${Math.round(part * 100)} %`);
      }
    } catch (error) { complain(error); }
  }

  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); search(event.shiftKey); }
    if (event.key === "Escape") { event.preventDefault(); field.blur(); } // browsers would empty the field
  });
  field.addEventListener("input", settled(() => {
    if (field.value === "") search(false);
    else if (field.value !== state.query) { state.query = field.value; state.found = null; fill(said); redrawLines(); }
  }, 150));

  page.leave(bind("f", "Output: stay at the end", () => setFollow(!state.follow)));
  page.leave(bind("w", "Output: wrap long lines", () => wrap.click()));
  page.leave(bind("n", "Output: next match", () => search(false)));
  page.leave(bind("N", "Output: previous match", () => search(true)));

  let first = true;
  return {
    box,
    /** The output has so many bytes now. */
    grown(length) {
      if (length <= output.length && !first) return;
      const before = output.length;
      output.length = Math.max(length, before);
      if (first) {
        first = false;
        if (length) toEnd();
        else showPlace();
        return;
      }
      if (state.follow) toEnd();
      else if (output.end >= before) inTurn(async () => { await fillUp(); showPlace(); });
      else showPlace();
    },
    /** The run has ended: there is nothing to follow. */
    ended() {
      state.live = false;
      follow.hidden = true;
      if (!output.length) fill(empty, "It printed nothing.");
    },
  };
}
