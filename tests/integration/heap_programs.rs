//! Real programs, looked at while they run: what is said of their heaps is compared with what their own C library says when gdb
//! calls mallinfo2(3), and malloc_trim(3), in them.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::Running;
use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::not_here;
use crate::support::python;
use crate::support::skip;
use crate::support::wait_until;
use crate::support::wait_until_idle;
use crate::support::wait_until_stopped;

#[track_caller]
fn look(pid: u32) -> Value {
    let ended = finish(breaktrace().args(["heap", "--json", "--exact", &pid.to_string()]));
    ended.expect_code(0);
    let document: Value = serde_json::from_str(&ended.stdout).unwrap();
    // The text is for people: it must come as well.
    let text = finish(breaktrace().args(["heap", &pid.to_string()]));
    text.expect_code(0);
    assert!(!text.stdout.is_empty());
    document
}

#[track_caller]
fn number(value: &Value, field: &str) -> u64 {
    value[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no number `{field}` in {value:#}"))
}

/// Anonymous memory of a process in bytes, counted page by page.
fn anonymous(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// What gdb has a process say: its answers to these commands.
fn gdb(pid: u32, commands: &[&str]) -> Option<String> {
    let gdb = installed(&["gdb"])?;
    let mut command = Command::new(gdb);
    command.args([
        "-nx",
        "-q",
        "-batch",
        "-ex",
        "set debuginfod enabled off",
        "-p",
        &pid.to_string(),
    ]);
    for one in commands {
        command.args(["-ex", one]);
    }
    let ended = finish(&mut command);
    Some(ended.stdout)
}

/// The fields of mallinfo2(3), in their order there.
const FIELDS: [&str; 10] = [
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
    "keepcost",
];

/// What the process's own C library says: mallinfo2 before, and how much less memory is there after malloc_trim(0).
///
/// A structure of 80 bytes is returned where the caller says: it goes below the stack, out of anybody's way.
fn truth_by_gdb(pid: u32) -> Option<([u64; 10], u64)> {
    let place = "(unsigned long *)(((unsigned long)$sp & ~0xfffUL) - 0x3000)";
    let before = anonymous(pid);
    let call = format!("call ((unsigned long (*)(unsigned long *))mallinfo2)({place})");
    let show = format!("x/10dg {place}");
    let told = gdb(pid, &[&call, &show])?;
    let values: Vec<u64> = told
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .filter(|(address, _)| address.starts_with("0x"))
        .flat_map(|(_, values)| values.split_whitespace())
        .filter_map(|value| value.parse().ok())
        .collect();
    let values: [u64; 10] = values
        .try_into()
        .unwrap_or_else(|_| panic!("gdb does not tell mallinfo2:\n{told}"));
    // What gdb itself had touched by now, on the stack, is no matter of the heap.
    let before = before.max(anonymous(pid));
    gdb(pid, &["call ((int (*)(unsigned long))malloc_trim)(0)"])?;
    Some((values, before.saturating_sub(anonymous(pid))))
}

/// Looks at a program, then has gdb ask the program itself. Returns what was seen.
#[track_caller]
fn agrees(pid: u32) -> Option<Value> {
    let document = look(pid);
    let heaps = document["examination"]["heaps"].as_array().unwrap();
    assert_eq!(heaps.len(), 1, "{document:#}");
    let heap = &heaps[0];
    for check in heap["checks"].as_array().unwrap() {
        assert_eq!(check["outcome"], "holds", "{heap:#}");
    }
    assert_eq!(number(&heap["total"], "not_found_bytes"), 0);
    let Some((values, returned)) = truth_by_gdb(pid) else {
        skip("gdb is not installed: the program's own account is not compared");
        return Some(document);
    };
    for (field, value) in FIELDS.iter().zip(values) {
        // Always 0.
        if *field != "usmblks" {
            assert_eq!(
                number(&heap["mallinfo"], field),
                value,
                "{field}: {:#}",
                heap["mallinfo"]
            );
        }
    }
    let predicted = number(heap, "trimmable_bytes");
    // gdb puts frames on the stack, whose pages stay.
    assert!(
        predicted.abs_diff(returned) <= 16 << 10,
        "predicted {predicted}, returned {returned}"
    );
    Some(document)
}

/// Starts a program that prints a line once it has a heap, and waits for its input.
#[track_caller]
fn ready(command: &mut Command) -> Running {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("MALLOC_") || name == "GLIBC_TUNABLES" {
            command.env_remove(name);
        }
    }
    let mut running = Running::start_obedient(command);
    while running.line() != "ready" {}
    wait_until_idle(running.pid());
    running
}

/// Looks at a script that holds memory while it waits.
#[track_caller]
fn script(names: &[&str], arguments: &[&str]) -> Option<Value> {
    let Some(program) = installed(names) else {
        skip(&format!("{} is not installed", names.join(", ")));
        return None;
    };
    let running = ready(Command::new(program).args(arguments));
    let document = agrees(running.pid());
    running.finish().expect_code(0);
    document
}

#[test]
fn a_python_that_freed_nearly_all_keeps_it_for_a_pin() {
    let Some(python) = python() else {
        return skip("there is no python3");
    };
    let program = "\
import sys
held = ['x' * 900 + str(i) for i in range(100000)]
pin = 'y' * 900 + str(sys.maxsize)
held = held[::1000]
print('ready', flush=True)
sys.stdin.read()
";
    let running = ready(
        Command::new(python)
            .args(["-S", "-c", program])
            .env("PYTHONMALLOC", "malloc"),
    );
    let document = agrees(running.pid()).unwrap();
    assert_eq!(document["verdict"]["kind"], "retained", "{document:#}");
    running.finish().expect_code(0);
}

#[test]
fn a_perl_that_deleted_most_of_a_hash_is_fragmented() {
    let program = "\
$| = 1; my %h; $h{$_} = 'x' x 100 for 1..150000; for (1..150000) { delete $h{$_} if $_ % 3 }
print \"ready\\n\"; my @rest = <STDIN>; ";
    let Some(document) = script(&["perl"], &["-e", program]) else {
        return;
    };
    assert_eq!(document["verdict"]["kind"], "fragmented", "{document:#}");
}

#[test]
fn a_bash_with_half_an_array_unset() {
    let program = "\
for ((i = 0; i < 40000; i++)); do a[i]=\"element number $i of this array\"; done
for ((i = 0; i < 20000; i++)); do unset 'a[i]'; done
echo ready; read rest; exit 0";
    script(&["bash"], &["-c", program]);
}

#[test]
fn a_ruby_that_collected_most_of_its_strings() {
    let program = "\
$stdout.sync = true; a = (0...60000).map { |i| 'x' * (100 + i % 50) }
a = a.each_slice(3).map(&:first); GC.start; puts 'ready'; STDIN.read";
    script(&["ruby"], &["-e", program]);
}

#[test]
fn a_sqlite_with_a_table_in_memory() {
    let Some(sqlite) = installed(&["sqlite3"]) else {
        return skip("sqlite3 is not installed");
    };
    let mut running = Running::start_obedient(Command::new(sqlite).args(["-batch", ":memory:"]));
    running.tell(
        "create table t(a, b); with recursive n(i) as (select 1 union all select i + 1 from n where i < 60000) \
         insert into t select i, hex(randomblob(50)) from n; delete from t where a % 4; select 'ready';",
    );
    while running.line() != "ready" {}
    wait_until_idle(running.pid());
    agrees(running.pid());
    running.finish().expect_code(0);
}

#[test]
fn a_git_that_serves_objects() {
    let Some(git) = ["/usr/bin/git"]
        .iter()
        .map(Path::new)
        .find(|path| path.is_file())
        .map(Path::to_path_buf)
        .or_else(|| installed(&["git"]))
    else {
        return skip("git is not installed");
    };
    let folder = folder();
    let run = |arguments: &[&str]| {
        let ended = finish(
            Command::new(&git)
                .args(["-c", "user.name=a", "-c", "user.email=a@example.org"])
                .args(arguments)
                .current_dir(folder.path()),
        );
        ended.expect_code(0);
    };
    run(&["init", "-q"]);
    fs::write(folder.path().join("file"), "text\n".repeat(50_000)).unwrap();
    run(&["add", "file"]);
    run(&["commit", "-q", "-m", "one"]);
    let mut running = Running::start_obedient(
        Command::new(&git)
            .args(["cat-file", "--batch-check"])
            .current_dir(folder.path()),
    );
    for _ in 0..50 {
        let answer = running.ask("HEAD:file");
        assert!(answer.ends_with("blob 250000"), "{answer}");
    }
    // A wrapper in the way has no heap of git's.
    if fs::read_link(format!("/proc/{}/exe", running.pid()))
        .is_ok_and(|exe| exe.file_name().is_some_and(|name| name == "git"))
    {
        wait_until_idle(running.pid());
        agrees(running.pid());
    }
    running.finish().expect_code(0);
}

#[test]
fn a_compiler_stopped_in_the_middle() {
    let Some(gcc) = installed(&["gcc"]) else {
        return skip("gcc is not installed");
    };
    let cc1 = finish(Command::new(gcc).arg("-print-prog-name=cc1")).stdout;
    let cc1 = cc1.trim();
    if !Path::new(cc1).is_file() {
        return skip("gcc has no cc1 here");
    }
    let folder = folder();
    let source = folder.path().join("long.c");
    let functions: String = (1..800)
        .map(|i| {
            format!(
                "int f{i}(int *a, int n) {{ int s = {i}; for (int j = 0; j < n; j++) \
                 if (a[j] % {i}u) s += a[j] * j; else s ^= a[j] >> 3; return s; }}\n"
            )
        })
        .collect();
    fs::write(&source, functions).unwrap();
    let running = Running::start(
        Command::new(cc1)
            .args(["-quiet", "-O1", "-o", "/dev/null"])
            .arg(&source),
    );
    let pid = running.pid();
    // It is in the midst of it once its heap has come to some size.
    wait_until("it has a heap", || {
        fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
            status
                .lines()
                .find_map(|line| line.strip_prefix("RssAnon:"))
                .and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok())
                .is_some_and(|kib| kib > 30_000)
        })
    });
    running.send(libc::SIGSTOP);
    wait_until_stopped(pid);
    // Wherever it stands, in malloc itself too: gdb must not call anything in there.
    let document = look(pid);
    let heap = &document["examination"]["heaps"][0];
    assert_eq!(number(&heap["total"], "not_found_bytes"), 0, "{heap:#}");
    assert!(number(&heap["total"], "in_use_chunks") > 1000, "{heap:#}");
    running.send(libc::SIGCONT);
    let ended = running.finish();
    ended.expect_code(0);
}

#[test]
fn redis_with_its_own_allocator_has_no_figures_of_glibcs() {
    let Some(redis) = installed(&["redis-server"]) else {
        return skip("redis-server is not installed");
    };
    let told = finish(Command::new(&redis).arg("--version")).stdout;
    let folder = folder();
    let mut running = Running::start(
        Command::new(&redis)
            .args(["--port", "0", "--save", "", "--unixsocket", "socket"])
            .current_dir(folder.path()),
    );
    while !running.line().to_lowercase().contains("ready to accept") {}
    let document = look(running.pid());
    if told.contains("malloc=jemalloc") {
        assert_eq!(document["examination"]["heaps"], serde_json::json!([]));
        assert_eq!(
            document["examination"]["allocators"][0]["name"], "jemalloc",
            "{document:#}"
        );
    }
    running.send(libc::SIGTERM);
    running.finish().expect_code(0);
}

#[test]
fn node_whose_threads_wait() {
    let program = "globalThis.held = []; for (let i = 0; i < 20000; i++) held.push(Buffer.alloc(5000 + i % 100)); \
                   held = held.filter((_, i) => i % 3 == 0); console.log('ready'); process.stdin.resume();";
    let Some(node) = installed(&["node", "nodejs"]) else {
        return skip("node is not installed");
    };
    let running = ready(Command::new(node).args(["-e", program]));
    let document = look(running.pid());
    let heap = &document["examination"]["heaps"][0];
    assert_eq!(number(&heap["total"], "not_found_bytes"), 0, "{heap:#}");
    let allocators = document["examination"]["allocators"].as_array().unwrap();
    assert!(
        allocators.iter().any(|one| one["name"] == "V8 (Node.js)"),
        "{allocators:#?}"
    );
    running.finish().expect_code(0);
}

#[test]
fn java_whose_threads_wait() {
    let (Some(java), Some(_)) = (installed(&["java"]), installed(&["javac"])) else {
        // A large package, which is not asked of every machine.
        return not_here("java is not installed, or without its compiler");
    };
    let folder = folder();
    let source = folder.path().join("Waits.java");
    fs::write(
        &source,
        "public class Waits { public static void main(String[] a) throws Exception { byte[][] held = new byte[2000][]; \
         for (int i = 0; i < held.length; i++) held[i] = new byte[1000 + i]; \
         System.out.println(\"ready\"); while (System.in.read() >= 0); System.out.println(held.length); } }",
    )
    .unwrap();
    let mut command = Command::new(java);
    command.args(["-Xmx64m", "-XX:+UseSerialGC"]).arg(&source);
    let mut running = Running::start_obedient(&mut command);
    assert_eq!(running.line(), "ready");
    // Threads of a virtual machine never all sleep in calls of their own for long.
    let document = look(running.pid());
    let heap = &document["examination"]["heaps"][0];
    assert_eq!(number(&heap["total"], "not_found_bytes"), 0, "{heap:#}");
    assert!(number(&heap["thread_caches"], "found") > 3, "{heap:#}");
    running.finish().expect_code(0);
}

#[test]
fn a_server_with_threads() {
    let Some(memcached) = installed(&["memcached"]) else {
        return skip("memcached is not installed");
    };
    let folder = folder();
    let socket = folder.path().join("socket");
    let running = Running::start(
        Command::new(memcached)
            .args(["-u", "root", "-t", "6", "-s"])
            .arg(&socket),
    );
    wait_until("it listens", || UnixStream::connect(&socket).is_ok());
    let mut connection = UnixStream::connect(&socket).unwrap();
    let mut answers = BufReader::new(connection.try_clone().unwrap());
    for item in 0..2000 {
        let value = "v".repeat(100 + item % 3000);
        write!(
            connection,
            "set key{item} 0 0 {}\r\n{value}\r\n",
            value.len()
        )
        .unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "STORED\r\n");
    }
    wait_until_idle(running.pid());
    let document = agrees(running.pid()).unwrap();
    let caches = &document["examination"]["heaps"][0]["thread_caches"];
    assert!(number(caches, "threads") > 6, "{caches:#}");
    // It still serves.
    write!(connection, "get key1\r\n").unwrap();
    let mut answer = String::new();
    answers.read_line(&mut answer).unwrap();
    assert_eq!(answer, "VALUE key1 0 101\r\n");
    running.send(libc::SIGTERM);
    running.finish().expect_code(0);
}
