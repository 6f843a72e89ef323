// What programs mean by escape sequences, for one line at a time: colours and faces, and a cursor that goes back in
// the line (carriage return, backspace) to write over it, as progress bars do.

const PALETTE = [
  "#000000", "#c91b00", "#00a63e", "#b58900", "#1f6feb", "#b63ab0", "#0e94a8", "#9aa4b0",
  "#6b7480", "#e5484d", "#2fbf71", "#d4a72c", "#5b9bff", "#d670d6", "#29b8c9", "#e6edf3",
];
const STEPS = [0, 95, 135, 175, 215, 255];
const FACES = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 8: "conceal", 9: "strike" };
const OFF = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 28: ["conceal"], 29: ["strike"] };
const MOST = 10_000; // columns that a cursor may be sent to

/** How text looks: colours as CSS, faces as classes. Equal styles are one object. */
export const PLAIN = Object.freeze({ fg: null, bg: null, faces: "" });
const known = new Map([["||", PLAIN]]);

function styled(fg, bg, faces) {
  const key = `${fg ?? ""}|${bg ?? ""}|${faces}`;
  let style = known.get(key);
  if (!style) {
    if (known.size > 5000) known.clear(); // a program that paints with all colours
    style = Object.freeze({ fg, bg, faces });
    known.set(key, style);
  }
  return style;
}

function indexed(n) {
  if (n < 16) return PALETTE[n];
  if (n >= 232) return rgb(...Array(3).fill(8 + (n - 232) * 10));
  const at = n - 16;
  return rgb(STEPS[Math.floor(at / 36)], STEPS[Math.floor(at / 6) % 6], STEPS[at % 6]);
}

const rgb = (...parts) => `#${parts.map((part) => Math.min(255, part).toString(16).padStart(2, "0")).join("")}`;

/** The style after a sequence `ESC [ params m`. */
function select(style, params) {
  let { fg, bg } = style;
  const faces = new Set(style.faces.split(" ").filter(Boolean));
  const codes = params.split(/[;:]/).map((code) => (code === "" ? 0 : Number(code)));
  for (let n = 0; n < codes.length; n += 1) {
    const code = codes[n];
    if (code === 0) { fg = null; bg = null; faces.clear(); }
    else if (FACES[code]) faces.add(FACES[code]);
    else if (code === 21) faces.add("underline");
    else if (OFF[code]) for (const face of OFF[code]) faces.delete(face);
    else if (code >= 30 && code <= 37) fg = PALETTE[code - 30];
    else if (code >= 90 && code <= 97) fg = PALETTE[code - 82];
    else if (code >= 40 && code <= 47) bg = PALETTE[code - 40];
    else if (code >= 100 && code <= 107) bg = PALETTE[code - 92];
    else if (code === 39) fg = null;
    else if (code === 49) bg = null;
    else if (code === 38 || code === 48) {
      let color = null;
      if (codes[n + 1] === 5 && codes[n + 2] < 256) { color = indexed(codes[n + 2]); n += 2; }
      else if (codes[n + 1] === 2 && codes.length > n + 4) { color = rgb(...codes.slice(n + 2, n + 5).map((part) => part || 0)); n += 4; }
      else break;
      if (code === 38) fg = color; else bg = color;
    }
  }
  return styled(fg, bg, [...faces].sort().join(" "));
}

// One of: a sequence with parameters; a string to the terminal (a title, a link); any other escape; a control character.
// eslint-disable-next-line no-control-regex
const TOKEN = /\x1b\[([0-9;:?<=>]*)[ -/]*([@-~])|\x1b[\]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?|[\x00-\x08\x0a-\x1f\x7f]/g;

/** [[text, style], ...] of a line without its end, and the style with which the next one begins. */
export function parseLine(text, style) {
  // eslint-disable-next-line no-control-regex
  if (!/[\x00-\x08\x0a-\x1f\x7f]/.test(text)) return { spans: text ? [[text, style]] : [], style };
  const line = new Line(style);
  let at = 0;
  for (const match of text.matchAll(TOKEN)) {
    if (match.index > at) line.write(text.slice(at, match.index));
    at = match.index + match[0].length;
    if (match[2] !== undefined) line.obey(match[2], match[1]);
    else if (match[0] === "\r") line.column = 0;
    else if (match[0] === "\b") line.column = Math.max(0, line.column - 1);
    else if (match[0].length === 1 && match[0] !== "\x1b" && match[0] !== "\x07") {
      line.write(String.fromCharCode(match[0] === "\x7f" ? 0x2421 : 0x2400 + match[0].charCodeAt(0)));
    }
  }
  if (at < text.length) line.write(text.slice(at));
  return { spans: line.spans(), style: line.style };
}

class Line {
  constructor(style) {
    this.style = style;
    this.column = 0;
    this.cells = []; // characters
    this.styles = [];
  }

  write(text) {
    for (const character of text) {
      while (this.cells.length < this.column) { this.cells.push(" "); this.styles.push(PLAIN); }
      this.cells[this.column] = character;
      this.styles[this.column] = this.style;
      this.column += 1;
    }
  }

  obey(letter, params) {
    const number = Math.min(MOST, Number(params) || 0);
    if (letter === "m") { if (/^[0-9;:]*$/.test(params)) this.style = select(this.style, params); }
    else if (letter === "K") this.erase(number);
    else if (letter === "J" && number >= 2) this.erase(2);
    else if (letter === "G") this.column = Math.max(0, number - 1);
    else if (letter === "C") this.column = Math.min(MOST, this.column + (number || 1));
    else if (letter === "D") this.column = Math.max(0, this.column - (number || 1));
  }

  erase(what) {
    if (what === 0) { this.cells.length = Math.min(this.cells.length, this.column); this.styles.length = this.cells.length; return; }
    const end = what === 1 ? Math.min(this.column + 1, this.cells.length) : this.cells.length;
    for (let n = 0; n < end; n += 1) { this.cells[n] = " "; this.styles[n] = PLAIN; }
    if (what === 2) { this.cells.length = 0; this.styles.length = 0; }
  }

  spans() {
    const found = [];
    for (let n = 0; n < this.cells.length; n += 1) {
      if (found.length && found.at(-1)[1] === this.styles[n]) found.at(-1)[0].push(this.cells[n]);
      else found.push([[this.cells[n]], this.styles[n]]);
    }
    return found.map(([characters, style]) => [characters.join(""), style]);
  }
}
