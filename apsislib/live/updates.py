"""Updates of one run."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

from apsislib.errors import NotFound
from apsislib.live.subscriber import PING, Subscriber
from apsislib.runs import Drop, Expect, Note, Output, Save
from apsislib.shapes import log_entry, run_summary
from apsislib.store import Grew


class RunUpdates(Subscriber):
    limit = 10_000

    def run(self) -> None:
        live = self.live
        assert self.run_id is not None
        run = live.driver.find_run(self.run_id)
        if run.run_id != self.run_id:
            raise NotFound(f"unknown run {self.run_id}")
        with live.store.read() as reader:
            run = reader.run(run.run_id) or run
            outputs = {o.output_id: (o.name, o.length, o.content_type) for o in reader.outputs(run.run_id)}
            lines = reader.log(run.run_id)
        # Everything up to what was read has been told, once the log's lines are seen to end.
        self._rev = run.rev
        self._lines = deque(lines)
        self._outputs = outputs
        if "init" in self.query:
            self._frame(
                run=run_summary(run),
                meta=run.meta,
                run_log=[log_entry(time, text) for time, text in lines],
                outputs=self._output_shapes(),
            )
        while True:
            found = self.changes(PING)
            # What was committed at once: first the log, then lengths of outputs, then the run itself, since
            # who follows a run leaves when it has ended.
            for event in found:
                if isinstance(event, Note) and not self._seen((event.time, event.message)):
                    self._frame(run_log_append=log_entry(event.time, event.message))
            self._grow([e for e in found if isinstance(e, Grew | Output)])
            for event in found:
                self._tell(event)

    def _tell(self, event: Any) -> None:
        match event:
            case Save(run=run, transition=True) | Expect(run=run):
                if run.rev >= self._rev:
                    self._rev = run.rev
                    self._frame(run=run_summary(run), meta=run.meta)
            case Save(run=run):
                if run.rev >= self._rev:
                    self._frame(meta=run.meta)
            case Drop():
                raise NotFound("the run is no more")

    def _seen(self, line: tuple[float, str]) -> bool:
        """Whether a line was in the log as it was read.

        What was committed before the read may be told after it, in the same order: so the lines told
        overlap with the end of those read.
        """
        if line not in self._lines:
            self._lines.clear()
            return False
        while self._lines.popleft() != line:
            pass
        return True

    def _grow(self, events: Iterable[Grew | Output]) -> None:
        changed = False
        for event in events:
            if isinstance(event, Output):
                known = event.name, len(event.data), event.content_type
            elif event.output_id in self._outputs:
                name, length, kind = self._outputs[event.output_id]
                known = name, max(length, event.length), kind
            else:
                with self.live.store.read() as reader:
                    info = next(
                        (o for o in reader.outputs(event.run_id) if o.output_id == event.output_id), None
                    )
                if info is None:
                    continue
                known = info.name, info.length, info.content_type
            if self._outputs.get(event.output_id) != known:
                self._outputs[event.output_id] = known
                changed = True
        if changed:
            self._frame(outputs=self._output_shapes())

    def _output_shapes(self) -> dict[str, Any]:
        return {
            output_id: {"name": name, "length": length, "content_type": kind}
            for output_id, (name, length, kind) in self._outputs.items()
        }

    def _frame(self, **parts: Any) -> None:
        self.send(json.dumps(parts, separators=(",", ":"), default=dict))
