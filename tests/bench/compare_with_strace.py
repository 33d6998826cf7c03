#!/usr/bin/env python3
"""Holds breaktrace's account of real programs against others' accounts.

    tests/bench/compare_with_strace.py [--breaktrace FILE] [--c-source FILE.c] [--repository DIR] [PROGRAM...]

Each program runs untraced, under `breaktrace run` and under strace. What must hold: same stdout, stderr and status as
untraced; the same number of calls, failures and bytes as

  the kernel   its tracepoints (perf), which watch the very run that breaktrace traces: must be equal, whatever the
               program does;
  strace       in a run of its own, both without address space randomization: equal if the program does the same
               each time. Where two runs of strace differ from each other this is said, and nothing is concluded.

The report's sums must be those of its events, and its comparisons with /proc/PID/maps find nothing; the last column says
how many there were, and how many could not be made because a thread was inside a call.

An oracle that is not installed or not permitted is said and left out. Ends with 1 when anything differs.
"""

import argparse
import collections
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

# Enough to keep a server busy for longer than breaktrace stays.
REQUESTS = 200_000
CALLS = ("brk", "mmap", "munmap", "mremap", "madvise")
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
ENVIRONMENT = dict(os.environ, LC_ALL="C", PYTHONHASHSEED="0", PERL_HASH_SEED="0")


class Account:
    """What an observer saw: calls, failures and bytes, all processes together."""

    def __init__(self):
        self.figures = collections.Counter()
        # Per thread, in order: what it called and what came of it.
        self.sequence = collections.defaultdict(list)
        self.break_of = {}

    def forget_break(self, process):
        self.break_of.pop(process, None)

    def inherit_break(self, child, parent):
        if parent in self.break_of:
            self.break_of[child] = self.break_of[parent]

    def call(self, process, thread, name, arguments, result):
        """`result` is negative for an error number."""
        count = self.figures
        count[name] += 1
        self.sequence[thread].append((name, result))
        if name == "brk":
            before = self.break_of.get(process)
            self.break_of[process] = result
            if arguments[0] not in (0, result):
                count["brk refused"] += 1
            if before is not None and result > before:
                count["break grew"] += 1
                count["break grew by"] += result - before
            if before is not None and result < before:
                count["break shrank"] += 1
                count["break shrank by"] += before - result
        elif result < 0:
            count[name + " failed"] += 1
        elif name == "mremap":
            count["mremap bytes"] += arguments[2] - arguments[1]
        else:
            count[name + " bytes"] += arguments[1]


def number(word):
    word = word.strip()
    return 0 if word == "NULL" else int(word, 0)


def account_of_breaktrace(log):
    """Reads an event log; nothing of breaktrace's own sums is used."""
    account = Account()
    process_of_space = {}
    with open(log) as lines:
        for line in lines:
            event = json.loads(line)
            kind = event.get("event")
            if kind == "process_started" and "from_space" in event:
                account.inherit_break(event["space"], event["from_space"])
            if kind not in CALLS:
                continue
            # Address spaces stand for processes: an exec makes a new one, threads share one.
            process_of_space[event["space"]] = event["pid"]
            result = event.get("result", 0)
            if "error" in event:
                result = -1
            elif isinstance(result, str):
                result = int(result, 16)
            elif not isinstance(result, int):
                result = 0
            value = lambda name: int(event[name], 16) if isinstance(event[name], str) else event[name]
            if kind == "brk":
                arguments, result = [value("requested")], value("after")
            elif kind == "mremap":
                arguments = [value("address"), value("old_length"), value("new_length")]
            else:
                arguments = [0, value("length")]
            account.call(event["space"], event["tid"], kind, arguments, result)
    return account


def account_of_strace(log):
    account = Account()
    parents, unfinished, known = {}, {}, set()
    lines = open(log, errors="replace").read().splitlines()
    whole = []
    for line in lines:
        match = re.match(r"(\d+) +(.*)", line)
        if not match:
            continue
        thread, text = int(match[1]), match[2]
        if text.endswith("<unfinished ...>"):
            unfinished[thread] = text[: -len("<unfinished ...>")]
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", text)
        if resumed:
            text = unfinished.pop(thread, "") + resumed[1]
        whole.append((thread, text))
    for thread, text in whole:
        born = re.match(r"(?:clone|clone3|fork|vfork)\(.*\)\s+= (\d+)", text)
        if born:
            parents[int(born[1])] = (thread, "CLONE_VM" in text and "CLONE_VFORK" not in text)
    def process_of(thread):
        while thread in parents and parents[thread][1]:
            thread = parents[thread][0]
        return thread
    for thread, text in whole:
        if thread not in known:
            known.add(thread)
            if thread in parents:
                account.inherit_break(process_of(thread), process_of(parents[thread][0]))
        if re.match(r"execve(at)?\(.*\)\s+= 0", text):
            account.forget_break(process_of(thread))
        match = re.match(r"(\w+)\((.*)\)\s+= (-?\w+)", text)
        if match and match[1] in CALLS:
            # Whatever follows the lengths is not needed, and may contain commas.
            arguments = []
            for word in match[2].split(", ")[:3]:
                try:
                    arguments.append(number(word))
                except ValueError:
                    break
            account.call(process_of(thread), thread, match[1], arguments, number(match[3]))
    return account


def account_of_kernel(text):
    account = Account()
    entered, process_of = {}, {}
    line_of = re.compile(r"\s*(.*?)\s+(\d+)/(\d+)\s+[\d.]+:\s+(\w+):(\w+): (.*)")
    for line in text.splitlines():
        match = line_of.match(line)
        if not match:
            continue
        command, process, thread, name, details = match[1], int(match[2]), int(match[3]), match[5], match[6]
        if name == "sched_process_fork":
            process_of[int(re.search(r"child_pid=(\d+)", details)[1])] = process
            continue
        # breaktrace itself, and its child until that has become the program.
        if command == "breaktrace":
            continue
        if thread in process_of:
            parent = process_of.pop(thread)
            if process != parent:
                account.inherit_break(process, parent)
        if name == "sched_process_exec":
            account.forget_break(process)
        elif name.startswith("sys_enter_"):
            entered[thread] = [int(word, 16) for word in re.findall(r": (0x[0-9a-f]+)", ":" + details)]
        elif name.startswith("sys_exit_") and thread in entered:
            result = int(details, 16)
            result -= 1 << 64 if result >= 1 << 63 else 0
            account.call(process, thread, name[len("sys_exit_"):], entered.pop(thread), result)
    return account


def faults_of_report(report, account):
    """What a report's sums say otherwise than the events behind it, and what its own checks found."""
    with open(report) as file:
        report = json.load(file)
    totals, figures = report["totals"], account.figures
    ours = {"break grew": totals["break_grow_calls"], "break grew by": totals["break_grown_bytes"],
            "break shrank": totals["break_shrink_calls"], "break shrank by": totals["break_shrunk_bytes"]}
    for call in totals["calls"]:
        if call["name"] in CALLS:
            ours[call["name"]] = call["calls"]
            ours[call["name"] + (" refused" if call["name"] == "brk" else " failed")] = call["failed"]
    faults = [f"{key}: report {count}, events {figures[key]}" for key, count in ours.items() if count != figures[key]]
    checks = [space["checks"] for space in report["address_spaces"]]
    faults += [f"checked against /proc: {line}" for check in checks for line in check["differences"]]
    return faults, [f"{totals['processes']}/{totals['threads']}",
                    f"{sum(c['made'] for c in checks)}/{sum(c['skipped'] for c in checks)}"]


class Perf:
    """The kernel's tracepoints, all processes below a command or those of a process."""

    EVENTS = ["sched:sched_process_fork", "sched:sched_process_exec"] + [
        f"syscalls:sys_{way}_{call}" for call in CALLS for way in ("enter", "exit")
    ]

    def __init__(self, folder):
        self.file = os.path.join(folder, "perf.data")

    def record(self):
        return ["perf", "record", "-q", "-m", "2048", "-o", self.file, "-e", ",".join(self.EVENTS)]

    def text(self):
        script = ["perf", "script", "-i", self.file, "-F", "comm,pid,tid,time,event,trace", "--show-lost-events"]
        text = subprocess.run(script, capture_output=True, text=True, check=True).stdout
        if re.search(r"PERF_RECORD_LOST", text):
            raise RuntimeError("perf lost events")
        return text

    @classmethod
    def is_permitted(cls, folder):
        if not shutil.which("perf"):
            return False
        return subprocess.run(cls(folder).record() + ["--", "true"], capture_output=True).returncode == 0


Program = collections.namedtuple("Program", "name command fresh results", defaults=(None, ()))


class Programs:
    """Makes what is to be traced, in a folder of its own."""

    def __init__(self, folder, options):
        self.folder, self.options = folder, options

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def compiled(self, name):
        source = os.path.join(ROOT, "fixtures/bench", name + ".c")
        subprocess.run(["cc", "-O2", "-pthread", "-o", self.path(name), source], check=True)
        return self.path(name)

    def go(self):
        if not shutil.which("go"):
            return None
        source = self.write("many.go", GO)
        subprocess.run(["go", "build", "-o", self.path("many"), source], check=True,
                       env=dict(os.environ, GOFLAGS="-mod=mod", GOCACHE=self.path("gocache")))
        return self.path("many")

    def fresh_repository(self):
        shutil.rmtree(self.path("repository"), ignore_errors=True)
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", self.options.repository, self.path("repository")],
                       check=True)

    def lines(self):
        state, lines = 1, []
        for _ in range(2_000_000):
            state = (state * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
            lines.append("%016x" % state)
        return self.write("lines.txt", "\n".join(lines) + "\n")

    def all(self):
        """Programs by name; `None` for those that need something which is not here."""
        def when(tool, make):
            return make() if shutil.which(tool) else None
        python = subprocess.run(["python3", "-c", "import sys; print(sys.executable)"], capture_output=True,
                                text=True).stdout.strip() if shutil.which("python3") else ""
        source = self.options.c_source
        repository = self.path("repository")
        git = lambda name, *words: when("git", lambda: Program(
            name, ["git", "-C", repository, "--no-pager", *words], self.fresh_repository))
        object_file = self.path("source.o")
        return {
            "python3": when("python3", lambda: Program("python3", [python, "-c", PYTHON])),
            "perl": when("perl", lambda: Program("perl", ["perl", "-e", PERL])),
            "gcc": when("gcc", lambda: Program(
                "gcc", ["gcc", "-O2", "-w", "-I", os.path.dirname(source), "-c", source, "-o", object_file],
                results=(object_file,)) if source else None),
            "git-log": git("git-log", "log", "--stat"),
            "git-fsck": git("git-fsck", "fsck", "--full"),
            "git-gc": git("git-gc", "gc", "--aggressive", "--quiet"),
            "sqlite3": when("sqlite3", lambda: Program("sqlite3", ["sqlite3", ":memory:", SQL])),
            "sort": when("sort", lambda: Program("sort", ["sort", "--parallel=2", "-S", "256M", self.lines()])),
            "sawtooth-kept": when("cc", lambda: Program("sawtooth-kept", [self.compiled("sawtooth"), "20", "kept"])),
            "sawtooth-trimmed": when("cc", lambda: Program("sawtooth-trimmed", [self.compiled("sawtooth"), "5", "trimmed"])),
            "break-storm": when("cc", lambda: Program("break-storm", ["sh", "-c", self.compiled("break_storm") + " 5000 >/dev/null"])),
            "four-threads": when("cc", lambda: Program("four-threads", ["sh", "-c", self.compiled("mapping_storm") + " 4 1000 >/dev/null"])),
            "forks": Program("forks", ["sh", "-c", "i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i+1)); done"]),
            "pipeline": Program("pipeline", ["sh", "-c", "seq 1 200000 | sort -r | awk '{s+=$1} END {print s, NR}' | cat; false"]),
            "go": when("go", lambda: Program("go", [self.go()])),
            "node": when("node", lambda: Program("node", ["node", "-e", NODE])),
        }


PYTHON = """
lists = [[i, str(i)] for i in range(500000)]
print(len(lists)); del lists
lists = [bytearray(100) for i in range(300000)]; print(len(lists)); raise SystemExit(3)
"""
PERL = "my %h; $h{$_} = [$_, $_ + 1] for 1 .. 200000; delete $h{$_ * 2} for 1 .. 100000; print scalar(keys %h), qq(\\n); warn qq(done\\n)"
SQL = """create table t(a integer primary key, b integer, c text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 400000)
insert into t select i, (i * 7919) % 1000003, 'row number ' || i from n;
create index tb on t(b); create index tc on t(c); select count(*), sum(b) from t; drop table t;"""
GO = """package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
)

func main() {
	var all sync.WaitGroup
	sums := make([]int, 500)
	for i := range sums {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			blocks := make([][]byte, 0)
			for n := 0; n < 200; n++ {
				blocks = append(blocks, make([]byte, 1000+n*i%5000))
				if n%50 == 0 {
					runtime.LockOSThread()
					runtime.Gosched()
				}
			}
			for _, block := range blocks {
				sums[i] += len(block)
			}
		}(i)
	}
	all.Wait()
	total := 0
	for _, sum := range sums {
		total += sum
	}
	out, err := exec.Command("echo", "from", "a", "child").Output()
	fmt.Print(total, " ", string(out))
	if err != nil {
		os.Exit(9)
	}
	os.Exit(4)
}
"""
NODE = """
const { Worker, isMainThread } = require('worker_threads');
const work = 'const a = []; for (let i = 0; i < 200000; i++) a.push({ i, s: "x" + i }); '
  + 'require("worker_threads").parentPort.postMessage(a.length)';
let left = 8, sum = 0;
for (let i = 0; i < 8; i++) new Worker(work, { eval: true }).on('message', n => { sum += n; })
  .on('exit', () => { if (--left === 0) { console.log(sum); process.exitCode = 5; } });
"""


def run(program, prefix=()):
    """Returns what can be seen from outside."""
    if program.fresh:
        program.fresh()
    done = subprocess.run([*prefix, *program.command], stdin=subprocess.DEVNULL, capture_output=True, env=ENVIRONMENT)
    digest = lambda data: hashlib.sha256(data).hexdigest()[:12]
    files = [digest(open(path, "rb").read()) for path in program.results]
    return done.returncode, digest(done.stdout), digest(done.stderr), *files


def differences(ours, theirs):
    keys = sorted(set(ours.figures) | set(theirs.figures))
    return [f"{key}: breaktrace {ours.figures[key]}, other {theirs.figures[key]}"
            for key in keys if ours.figures[key] != theirs.figures[key]]


def mebibytes(count):
    return f"{count / (1 << 20):.1f}"


def row_of(name, figures, same, kernel, strace, extent):
    cells = [name] + [str(figures[call]) for call in CALLS]
    cells += ["+" + mebibytes(figures["break grew by"]), "-" + mebibytes(figures["break shrank by"])]
    return cells + [same, kernel, strace, *extent]


def compare(program, folder, options, oracles):
    """Runs one program under everything. Returns its row and what differed."""
    log, other_log = os.path.join(folder, "events.jsonl"), os.path.join(folder, "strace.log")
    report = os.path.join(folder, "report.json")
    plain = run(program)
    breaktrace = [options.breaktrace, "run", "--no-aslr", "--events", log, "-o", report, "--"]
    perf = Perf(folder)
    traced = run(program, (perf.record() + ["--"] if "perf" in oracles else []) + breaktrace)
    ours = account_of_breaktrace(log)
    found = []
    # perf reports the end of its command, not the command's status: that takes a run without it.
    if "perf" in oracles:
        kernel = differences(ours, account_of_kernel(perf.text()))
        found += [f"{program.name}: kernel: {line}" for line in kernel]
        traced = run(program, breaktrace)
        ours = account_of_breaktrace(log)
    if traced != plain:
        found.append(f"{program.name}: status, stdout, stderr, files: untraced {plain}, traced {traced}")
    faults, extent = faults_of_report(report, ours)
    found += [f"{program.name}: {line}" for line in faults]
    strace = "-"
    if "strace" in oracles:
        command = ["setarch", "-R", "strace", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-e",
                   "trace=" + ",".join(CALLS) + ",execve,execveat,clone,clone3,fork,vfork", "-o", other_log]
        accounts = []
        for _ in range(2):
            run(program, command)
            accounts.append(account_of_strace(other_log))
        other = [differences(ours, account) for account in accounts]
        if not other[0] or not other[1]:
            strace = "equal"
        elif differences(*accounts):
            strace = "varies"
        else:
            strace = "DIFFERS"
            found += [f"{program.name}: strace: {line}" for line in other[0]]
    row = row_of(program.name, ours.figures, "same" if traced == plain else "DIFFERS",
                 ("DIFFERS" if kernel else "equal") if "perf" in oracles else "-", strace, extent)
    return row, found


def wait_for_port(port):
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"nobody listens on {port}")


def is_part_of(part, whole):
    """Whether a sequence is contained in another without a gap."""
    if not part:
        return True
    starts = (i for i, item in enumerate(whole) if item == part[0])
    return any(whole[i:i + len(part)] == part for i in starts)


def redis_server(folder, port):
    return ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder,
            "--loglevel", "warning"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def benchmark(port, requests):
    """Fills a server with large values; returns its replies per second, or `None` when it failed."""
    command = ["redis-benchmark", "-p", str(port), "-n", str(requests), "-r", "100000", "-d", "20000", "-t", "set", "--csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    rates = [float(line.split(",")[1].strip('"')) for line in done.stdout.splitlines()[1:] if "," in line]
    return rates[0] if done.returncode == 0 and len(rates) == 1 and "rror" not in done.stderr else None


def redis_launched(folder, options, oracles):
    port, log, report = free_port(), os.path.join(folder, "events.jsonl"), os.path.join(folder, "report.json")
    perf = Perf(folder)
    prefix = perf.record() + ["--"] if "perf" in oracles else []
    server = subprocess.Popen(prefix + [options.breaktrace, "run", "--events", log, "-o", report, "--"] + redis_server(folder, port),
                              stdout=subprocess.DEVNULL)
    wait_for_port(port)
    served = benchmark(port, REQUESTS)
    subprocess.run(["redis-cli", "-p", str(port), "shutdown", "nosave"], stdout=subprocess.DEVNULL)
    status = server.wait()
    ours = account_of_breaktrace(log)
    found = [] if served and status == 0 else [f"redis launched: served {served}, status {status}"]
    faults, extent = faults_of_report(report, ours)
    found += [f"redis launched: {line}" for line in faults]
    kernel = "-"
    if "perf" in oracles:
        lines = differences(ours, account_of_kernel(perf.text()))
        found += [f"redis launched: kernel: {line}" for line in lines]
        kernel = "DIFFERS" if lines else "equal"
    return row_of("redis, launched", ours.figures, "DIFFERS" if not served or status else "same", kernel, "-", extent), found


def redis_alone(folder):
    """What a fresh server does for its client when nobody looks."""
    port = free_port()
    server = subprocess.Popen(redis_server(folder, port), stdout=subprocess.DEVNULL)
    wait_for_port(port)
    served = benchmark(port, REQUESTS)
    subprocess.run(["redis-cli", "-p", str(port), "shutdown", "nosave"], stdout=subprocess.DEVNULL)
    server.wait()
    return served or 0


def redis_attached(folder, options, oracles):
    """Joins and leaves a server while it serves; each thread's calls must be a part, without a gap, of the kernel's."""
    port, log, report = free_port(), os.path.join(folder, "events.jsonl"), os.path.join(folder, "report.json")
    alone = redis_alone(folder)
    server = subprocess.Popen(redis_server(folder, port), stdout=subprocess.DEVNULL)
    wait_for_port(port)
    perf = Perf(folder)
    watcher = None
    if "perf" in oracles:
        watcher = subprocess.Popen(perf.record() + ["-p", str(server.pid)])
        time.sleep(1)
    # A fresh server asks for memory from its first client on: join it at once.
    load = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--load", str(port)], stdout=subprocess.PIPE, text=True)
    attach = subprocess.run([options.breaktrace, "attach", "--duration", "2s", "--events", log, "-o", report, str(server.pid)])
    still_serving = load.poll() is None
    during = json.loads(load.communicate()[0]) or 0
    if watcher:
        watcher.send_signal(2)
        watcher.wait()
    after = benchmark(port, REQUESTS) or 0
    subprocess.run(["redis-cli", "-p", str(port), "shutdown", "nosave"], stdout=subprocess.DEVNULL)
    status = server.wait()
    ours = account_of_breaktrace(log)
    healthy = attach.returncode == 0 and during and after and status == 0 and still_serving
    found = [] if healthy else [
        f"redis attached: attach {attach.returncode}, replies {during} {after}, status {status}, still under load when "
        f"left: {still_serving}"]
    faults, extent = faults_of_report(report, ours)
    found += [f"redis attached: {line}" for line in faults]
    kernel = "-"
    if watcher:
        theirs = account_of_kernel(perf.text())
        missing = [thread for thread, calls in ours.sequence.items() if not is_part_of(calls, theirs.sequence[thread])]
        kernel = "DIFFERS" if missing or not ours.sequence else "equal"
        found += [f"redis attached: the calls of thread {thread} are not those that the kernel saw" for thread in missing]
        print(f"redis attached: {sum(map(len, theirs.sequence.values()))} calls in all by the kernel's account")
    print(f"redis-benchmark set, 20 kB each, fresh server: {alone:.0f} replies a second alone; {during:.0f} while "
          f"breaktrace came, stayed for 2 s and left; {after:.0f} after")
    return row_of("redis, attached", ours.figures, "same" if healthy else "DIFFERS", kernel, "-", extent), found


def print_table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                        for column, (cell, width) in enumerate(zip(row, widths))).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--breaktrace", default=os.path.join(ROOT, "target/release/breaktrace"))
    parser.add_argument("--c-source", help="a real C file for gcc; default: Lua's lvm.c, if cargo has fetched lua-src")
    parser.add_argument("--repository", default=ROOT, help="the repository that git works on, in a copy")
    parser.add_argument("--load", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("programs", nargs="*")
    options = parser.parse_args()
    if options.load:
        print(json.dumps(benchmark(options.load, REQUESTS)))
        return 0
    if not options.c_source:
        registry = os.path.expanduser("~/.cargo/registry/src/*/lua-src-*/lua-5.4*/lvm.c")
        options.c_source = next(iter(sorted(glob.glob(registry))), None)
    found, rows = [], [["program", *CALLS, "break, MiB", "", "seen from outside", "kernel", "strace", "processes/threads",
                    "checked/skipped"]]
    with tempfile.TemporaryDirectory(prefix="breaktrace-compare-") as folder:
        oracles = {name for name, here in (("strace", shutil.which("strace") and shutil.which("setarch")),
                                           ("perf", Perf.is_permitted(folder))) if here}
        for name in {"strace", "perf"} - oracles:
            print(f"{name} is not to be had here: left out")
        programs = Programs(folder, options).all()
        redis = {"redis-launched": redis_launched, "redis-attached": redis_attached}
        for name in options.programs or [*programs, *redis]:
            if name not in programs and name not in redis:
                parser.error(f"no program `{name}`; there are {', '.join([*programs, *redis])}")
            if name in redis and not shutil.which("redis-benchmark") or name in programs and not programs[name]:
                print(f"{name}: left out, something that it needs is not installed")
                continue
            print(f"{name} ...", file=sys.stderr)
            if name in redis:
                row, differing = redis[name](folder, options, oracles)
            else:
                row, differing = compare(programs[name], folder, options, oracles)
            rows.append(row)
            found += differing
    print_table(rows)
    for line in found:
        print("differs:", line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
