// A window on an output: the part of its bytes that is at hand, as lines. It grows at either end and is cut at the
// other, so that an output of a gigabyte takes no more memory than one of a megabyte. No DOM here.

import { PLAIN, parseLine } from "./run-ansi.js";
import { API } from "../lib/api.js";

export const BLOCK = 128 * 1024; // bytes fetched at a time
const LONGEST = 64 * 1024; // bytes of a line; a longer one is shown as several
const PROGRESS = 8 * 1024; // bytes at the end of a line that writes over itself: what came before is not seen
const NEWLINE = 10;

const decoder = new TextDecoder("utf-8");

export async function fetchBytes(address, start, stop, signal) {
  if (stop <= start) return new Uint8Array();
  const response = await fetch(`${API}${address}`, { headers: { range: `bytes=${start}-${stop - 1}` }, signal });
  if (response.status === 416) return new Uint8Array();
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error || `The server answered ${response.status}.`);
  }
  const data = new Uint8Array(await response.arrayBuffer());
  return response.status === 206 ? data : data.subarray(start, stop);
}

/** Where a character of UTF-8 begins, at or before `at`. */
function boundary(data, at) {
  let found = at;
  while (found > 0 && found > at - 4 && (data[found] & 0xc0) === 0x80) found -= 1;
  return found;
}

/** A part of the output, of whole lines where they are not too long. */
class Block {
  constructor(start, end, lines, before, after) {
    this.start = start;
    this.end = end;
    this.lines = lines; // {at, size, spans, ended, style: with which it begins}
    this.before = before; // the style with which it begins,
    this.after = after; // and the one with which it ends
    this.first = null; // number of its first line, from 0; null: not known
    this.node = null;
  }

  /** How many of its lines have ended. */
  get ends() { return this.lines.filter((line) => line.ended).length; }
}

/** Lines of `data`, whose first byte is the output's byte `start`. */
function linesOf(data, start, before) {
  const lines = [];
  let style = before;
  let at = 0;
  while (at < data.length) {
    let end = data.indexOf(NEWLINE, at);
    const ended = end >= 0 && end - at <= LONGEST;
    if (!ended) end = data.length - at > LONGEST ? Math.max(at + 1, boundary(data, at + LONGEST)) : data.length;
    let piece = data.subarray(at, end);
    if (ended && piece.at(-1) === 13) piece = piece.subarray(0, -1); // CRLF
    if (piece.length > 2 * PROGRESS) {
      const back = piece.lastIndexOf(13, piece.length - PROGRESS);
      if (back >= 0) piece = piece.subarray(back);
    }
    const parsed = parseLine(decoder.decode(piece), style);
    const next = ended ? end + 1 : end;
    lines.push({ at: start + at, size: next - at, spans: parsed.spans, ended, style });
    style = parsed.style;
    at = next;
  }
  return [lines, style];
}

export class Output {
  constructor(address, length) {
    this.address = address;
    this.length = length; // bytes there are, as far as is known
    this.blocks = [];
    this.marks = [0]; // line ends before each stretch of `stride` bytes; grows as it is asked for
    this.stride = 0;
    this.total = null; // {ends: line ends of all of it, lines, length}
    this.version = 0; // counts jumps: what was asked for before one is of no use after it
  }

  get start() { return this.blocks.length ? this.blocks[0].start : 0; }
  get end() { return this.blocks.length ? this.blocks.at(-1).end : 0; }
  get size() { return this.end - this.start; }
  get atEnd() { return this.blocks.length > 0 && this.end >= this.length; }

  /** Begin anew around the byte `at`: with the line that holds it. */
  async jump(at, signal) {
    this.version += 1;
    const version = this.version;
    const low = Math.max(0, Math.min(at, this.length) - BLOCK / 2);
    const data = await fetchBytes(this.address, low, Math.min(this.length, low + BLOCK), signal);
    if (version !== this.version) return false;
    this.blocks = [];
    const skip = low ? this.aligned(data) : 0;
    const block = this.make(data.subarray(skip), low + skip, PLAIN);
    this.blocks.push(block);
    if (block.start === 0) block.first = 0;
    return true;
  }

  /** Bytes before the first line that begins in `data`; where none does, to the first whole character. */
  aligned(data) {
    const end = data.indexOf(NEWLINE);
    if (end >= 0 && end < data.length - 1) return end + 1;
    let skip = 0;
    while (skip < 3 && (data[skip] & 0xc0) === 0x80) skip += 1;
    return skip;
  }

  /** A block of what begins at `start`, cut behind its last whole line unless it reaches the end of the output. */
  make(data, start, before) {
    let end = data.length;
    if (start + end < this.length) {
      const last = data.lastIndexOf(NEWLINE);
      end = last >= 0 ? last + 1 : boundary(data, data.length - 1) || data.length;
    } else {
      // The last character may not be whole yet.
      const last = boundary(data, data.length - 1);
      const lead = data[last];
      const need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
      if (last >= 0 && last + need > data.length && lead >= 0xc0) end = last;
    }
    const [lines, after] = linesOf(data.subarray(0, end), start, before);
    return new Block(start, start + end, lines, before, after);
  }

  /** The block before the first one; null: there is none. */
  async earlier(signal) {
    if (!this.blocks.length || this.start === 0) return null;
    const [version, stop] = [this.version, this.start];
    const low = Math.max(0, stop - BLOCK);
    const data = await fetchBytes(this.address, low, stop, signal);
    if (version !== this.version || stop !== this.start) return null;
    const skip = low ? this.aligned(data) : 0;
    const [lines, after] = linesOf(data.subarray(skip), low + skip, PLAIN);
    const block = new Block(low + skip, stop, lines, PLAIN, after);
    const next = this.blocks[0];
    if (next.first !== null) block.first = next.first - block.ends;
    else if (block.start === 0) block.first = 0;
    this.blocks.unshift(block);
    return block;
  }

  /** What follows the last block: {block, replaced}; an unfinished last line is taken up again. Null: nothing does. */
  async later(signal) {
    if (this.end >= this.length && this.blocks.length) return null;
    const version = this.version;
    const last = this.blocks.at(-1);
    const open = last && last.lines.length && !last.lines.at(-1).ended && last.end - last.lines.at(-1).at < LONGEST;
    const start = open ? last.lines.at(-1).at : this.end;
    const end = this.end;
    const data = await fetchBytes(this.address, start, Math.min(this.length, start + BLOCK), signal);
    if (version !== this.version || end !== this.end || start + data.length <= end) return null;
    if (last && (open || last.end - last.start < BLOCK / 4)) {
      // Grow the last block: from its unfinished line on, so that small additions make no small blocks.
      const kept = open ? last.lines.slice(0, -1) : last.lines;
      const made = this.make(data, start, open ? last.lines.at(-1).style : last.after);
      const from = kept.length;
      last.lines = [...kept, ...made.lines];
      last.after = made.after;
      last.end = made.end;
      return { block: last, from };
    }
    const block = this.make(data, start, last ? last.after : PLAIN);
    block.first = last && last.first !== null ? last.first + last.ends : start === 0 ? 0 : null;
    this.blocks.push(block);
    return { block, from: 0 };
  }

  /** Give up blocks at one end until at most `most` bytes are held; answers those that are gone. */
  cut(most, fromStart) {
    const gone = [];
    while (this.size > most && this.blocks.length > 1) gone.push(fromStart ? this.blocks.shift() : this.blocks.pop());
    return gone;
  }

  // -- numbers of lines ------------------------------------------------------------------------

  /** Have line ends counted up to the byte `at`. `ask(start)` answers as the API does; `progress(fraction)`. */
  count(at, ask, progress = () => {}) {
    // One after the other: two at once would count the same stretches twice.
    const counted = (this.counting ?? Promise.resolve()).catch(() => {}).then(() => this.countOn(at, ask, progress));
    this.counting = counted;
    return counted;
  }

  async countOn(at, ask, progress) {
    while (!this.stride || this.counted + this.stride <= at || (at >= this.length && this.total?.length !== this.length)) {
      const from = this.counted;
      const answer = await ask(from);
      this.stride = answer.stride;
      answer.counts.forEach((number, n) => {
        const ends = this.marks.at(-1) + number;
        if (from + (n + 1) * answer.stride <= answer.length) this.marks.push(ends);
        else this.total = { ends, length: answer.length };
      });
      progress(Math.min(1, this.counted / Math.max(1, at)));
      if (answer.next === null) {
        if (this.total?.length !== answer.length) this.total = { ends: this.marks.at(-1), length: answer.length };
        const [last] = await fetchBytes(this.address, answer.length - 1, answer.length);
        this.total.lines = this.total.ends + (answer.length && last !== NEWLINE ? 1 : 0);
        return;
      }
    }
  }

  /** Bytes whose line ends are known. */
  get counted() { return (this.marks.length - 1) * this.stride; }

  /** Number the lines of all blocks at hand, if it can be known. */
  async number(ask, signal, progress) {
    const first = this.blocks[0];
    if (!first) return;
    const version = this.version;
    if (first.first === null) {
      const start = first.start;
      await this.count(start, ask, progress);
      if (version !== this.version || first !== this.blocks[0] || !this.stride) return;
      const mark = Math.min(this.marks.length - 1, Math.floor(start / this.stride));
      const data = await fetchBytes(this.address, mark * this.stride, start, signal);
      if (version !== this.version) return;
      first.first = this.marks[mark] + countEnds(data);
    }
    for (let n = 1; n < this.blocks.length; n += 1) {
      const before = this.blocks[n - 1];
      this.blocks[n].first = before.first + before.ends;
    }
  }

  /** The byte at which line `n` (from 0) begins; of a line beyond the last one, the end. */
  async lineStart(n, ask, signal, progress) {
    await this.count(this.length, ask, progress);
    if (n <= 0 || !this.stride) return 0;
    let mark = 0;
    while (mark + 1 < this.marks.length && this.marks[mark + 1] < n) mark += 1;
    const from = mark * this.stride;
    const data = await fetchBytes(this.address, from, Math.min(this.length, from + 2 * this.stride), signal);
    let at = -1;
    for (let left = n - this.marks[mark]; left > 0; left -= 1) {
      at = data.indexOf(NEWLINE, at + 1);
      if (at < 0) return this.length;
    }
    return from + at + 1;
  }
}

function countEnds(data) {
  let count = 0;
  for (let at = data.indexOf(NEWLINE); at >= 0; at = data.indexOf(NEWLINE, at + 1)) count += 1;
  return count;
}
