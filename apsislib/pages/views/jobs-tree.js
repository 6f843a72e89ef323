// The table of jobs as a tree.

import { FINISHED } from "../lib/times.js";

/** Items of the tree of these jobs: folders first, then jobs, each in order; what lies in closed folders is left out.
 *  `folder`: whose tree it is; `isOpen(path)`; `stateOf(job ID)`: of its newest run. */
export function tree(jobs, folder, isOpen, stateOf) {
  const root = { folders: new Map(), jobs: [] };
  const skip = folder ? folder.length + 1 : 0;
  for (const job of jobs) {
    const parts = job.job_id.slice(job.job_id === folder ? 0 : skip).split("/");
    let here = root;
    let path = folder;
    for (const part of parts.slice(0, -1)) {
      path = path ? `${path}/${part}` : part;
      if (!here.folders.has(part)) here.folders.set(part, { path, name: part, folders: new Map(), jobs: [] });
      here = here.folders.get(part);
    }
    here.jobs.push({ job, name: parts.at(-1) });
  }
  const out = [];
  const walk = (node, depth) => {
    for (const inner of [...node.folders.values()].map(shortened).sort((a, b) => (a.name < b.name ? -1 : 1))) {
      if (inner.jobs.length === 1 && !inner.folders.size) {
        // A folder for one job is no more than a part of its name.
        const [{ job, name }] = inner.jobs;
        out.push({ key: job.job_id, job, depth, name: `${inner.name}/${name}` });
        continue;
      }
      const open = isOpen(inner.path);
      out.push({ key: `${inner.path}/`, folder: inner, depth, open, sum: summary(inner, stateOf) });
      if (open) walk(inner, depth + 1);
    }
    for (const { job, name } of node.jobs) out.push({ key: job.job_id, job, depth, name });
  };
  walk(root, 0);
  return out;
}

/** Folders that hold but one folder are shown as one. */
function shortened(node) {
  let here = node;
  while (here.folders.size === 1 && !here.jobs.length) {
    const [inner] = here.folders.values();
    here = { ...inner, name: `${here.name}/${inner.name}` };
  }
  return here;
}

/** How many jobs lie in a folder, and how many of them fail or are active. */
function summary(node, stateOf) {
  const sum = { jobs: 0, failing: 0, active: 0 };
  const walk = (inner) => {
    for (const { job } of inner.jobs) {
      sum.jobs += 1;
      const state = stateOf(job.job_id);
      if (state === "failure" || state === "error") sum.failing += 1;
      else if (state && !FINISHED.includes(state)) sum.active += 1;
    }
    for (const deeper of inner.folders.values()) walk(deeper);
  };
  walk(node);
  return sum;
}
