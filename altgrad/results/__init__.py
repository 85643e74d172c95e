"""The results schema: the files of a run, their writer and their readers.

A run is a folder, and a sweep is a folder of runs.  A table is stored as Parquet parts that are written once and never
changed.  This works alike on local disks, NFS and object stores, and a reader fetches only new parts and the columns
that it needs:

    <root>/<sweep>/sweep.json              name, command, planned runs (written by the sweep)
    <root>/<sweep>/annotations.json        only if people have noted, starred, tagged or hidden runs, see `annotations`
    <root>/<sweep>/<run>/run.json          at start: schema, ids, resolved config, versions, hashes, host, device
                        /steps/part-*      one row per step; one column per metric, null = not measured
                        /layers/part-*     step x layer x site
                        /events/part-*     step, kind, detail (a JSON object)
                        /tensors/part-*    step x layer x site: log2 histogram and a small fixed sample
                        /failure_report.md only if collapsed
                        /explanation.json  only if explained: the replays of its collapse, see `altgrad.explain`
                        /explain/ARM       folders of these replays, each that of a run
                        /lease.json        process that trains it now, renewed every 10 s; deleted when it has ended
                        /end.json          status, verdict, summary; absent while running and after a kill

Every row has the number of its `attempt`: if a restored run wrote a step twice, the later attempt counts.  While a run
trains, its many small parts are merged into one, see `parts`.
No torch, no ray: the dashboard reads results through this package alone.
"""

from altgrad.results.lease import Lease, LeaseHeld, life_of, read_lease
from altgrad.results.parts import read_rows, read_table
from altgrad.results.reading.events import acts, format_shifts, particulars_of, read_events
from altgrad.results.reading.run import Run, list_runs, list_sweeps, read_run
from altgrad.results.records import RecordError, ended_as, read_end, read_plan, read_start
from altgrad.results.schema import SCHEMA, SCHEMAS, Status, TableName, Verdict
from altgrad.results.writer import NoWriter, RunWriter, write_end

__all__ = [
    "SCHEMA",
    "SCHEMAS",
    "Lease",
    "LeaseHeld",
    "NoWriter",
    "RecordError",
    "Run",
    "RunWriter",
    "Status",
    "TableName",
    "Verdict",
    "acts",
    "ended_as",
    "format_shifts",
    "life_of",
    "list_runs",
    "list_sweeps",
    "particulars_of",
    "read_end",
    "read_events",
    "read_lease",
    "read_plan",
    "read_rows",
    "read_run",
    "read_start",
    "read_table",
    "write_end",
]
