// Programs as facts: what is run stands first and can be read as it was written.

import { el } from "./dom.js";
import { facts } from "./marks.js";

const SHELLS = /^\/(usr\/)?bin\/(ba|da|z|k)?sh$/;

/** The program of a job or run. */
export function programFacts(program) {
  const { type, str, command, argv, ...rest } = program;
  const script = command ?? (Array.isArray(argv) && argv.length === 3 && SHELLS.test(argv[0]) && argv[1] === "-c" ? argv[2] : null);
  const rows = [["type", el("span", { class: "mono", title: type }, shortType(type, script))]];
  if (script !== null) rows.push(["command", code(script)]);
  else if (Array.isArray(argv)) rows.push(["argv", code(argv.map(shown).join(" "))]);
  for (const [name, value] of Object.entries(rest)) {
    if (value === null || value === undefined || (typeof value === "object" && !Object.keys(value).length)) continue;
    rows.push([name, el("span", { class: "mono" }, typeof value === "string" ? value : JSON.stringify(value))]);
  }
  return facts(rows);
}

const code = (text) => el("pre", { class: "command", tabIndex: 0 }, text);

/** `apsis.program.procstar.agent.BoundProcstarProgram` is procstar to people. */
function shortType(type, script) {
  const known = { ShellProgram: "shell", BoundProcstarProgram: script === null ? "procstar" : "procstar-shell", BoundProcstarECSProgram: "procstar-ecs",
    BoundNoOpProgram: "no-op", NoOpProgram: "no-op", ProcstarProgram: "procstar", ProcstarShellProgram: "procstar-shell", ProcstarECSProgram: "procstar-ecs" };
  return known[String(type).split(".").at(-1)] ?? String(type);
}

/** An argument as a shell would have it. */
const shown = (arg) => (/^[\w@%+=:,./{}-]+$/.test(arg) ? arg : `'${String(arg).replaceAll("'", "'\\''")}'`);
