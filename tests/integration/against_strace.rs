//! strace's account of the same deterministic program: the same calls, and the same bytes by which the break moved.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::calls;
use crate::support::can_fix_addresses;
use crate::support::finish;
use crate::support::fixture;
use crate::support::folder;
use crate::support::installed;
use crate::support::not_here;
use crate::support::number;
use crate::support::python;
use crate::support::skip;
use crate::support::spare_locale;
use crate::support::trace_unchecked;

const COUNTED: [&str; 5] = ["brk", "mmap", "munmap", "mremap", "madvise"];

/// What strace's output amounts to.
#[derive(Debug, Default, PartialEq)]
struct Account {
    /// Calls and failures of each of `COUNTED`.
    calls: [(u64, u64); COUNTED.len()],
    grown: u64,
    shrunk: u64,
}

/// Reads the output of `strace -f -e trace=brk,mmap,munmap,mremap,madvise,clone,clone3,fork,vfork,execve,execveat`.
///
/// Breaks are followed per address space: a forked child begins with its parent's, a vforked one shares it until exec.
#[derive(Default)]
struct Reader {
    account: Account,
    /// Calls that have begun, by thread.
    unfinished: HashMap<u32, String>,
    /// The address space of each thread.
    spaces: HashMap<u32, usize>,
    /// The break of each address space, where known.
    breaks: Vec<Option<u64>>,
    /// Children by their parent's account, before they have said a word.
    parents: HashMap<u32, (u32, bool)>,
}

impl Reader {
    fn read(text: &str) -> Account {
        let mut reader = Self::default();
        for line in text.lines() {
            let (pid, rest) = line.split_once(' ').unwrap();
            reader.line(pid.parse().unwrap(), rest.trim_start());
        }
        reader.account
    }

    fn line(&mut self, pid: u32, text: &str) {
        if let Some(begun) = text.strip_suffix(" <unfinished ...>") {
            if text.starts_with("clone") || text.starts_with("vfork") || text.starts_with("fork") {
                self.children_may_come(pid, begun);
            }
            self.unfinished.insert(pid, begun.to_owned());
        } else if let Some((begun, leader)) = text
            .strip_suffix(" ...>")
            .and_then(|text| text.split_once(" <pid changed to "))
        {
            // A thread that is not the first execs, and takes the number of its process.
            self.unfinished
                .insert(leader.parse().unwrap(), begun.to_owned());
        } else if let Some(resumed) = text.strip_prefix("<... ") {
            let rest = resumed.split_once(" resumed>").unwrap().1;
            let whole = self.unfinished.remove(&pid).unwrap() + rest;
            self.call(pid, &whole);
        } else if !text.starts_with(['+', '-']) {
            self.call(pid, text);
        }
    }

    /// A child may act before its parent's call has returned: remember who is about to have one.
    fn children_may_come(&mut self, pid: u32, call: &str) {
        self.parents.insert(0, (pid, shares_memory(call)));
    }

    fn space(&mut self, pid: u32) -> usize {
        if let Some(space) = self.spaces.get(&pid) {
            return *space;
        }
        let space = match self.parents.get(&pid).or(self.parents.get(&0)).copied() {
            Some((parent, true)) => self.space(parent),
            Some((parent, false)) => {
                let parent = self.space(parent);
                self.breaks.push(self.breaks[parent]);
                self.breaks.len() - 1
            }
            None => {
                self.breaks.push(None);
                self.breaks.len() - 1
            }
        };
        self.spaces.insert(pid, space);
        space
    }

    fn call(&mut self, pid: u32, text: &str) {
        let (name, rest) = text.split_once('(').unwrap();
        let (arguments, result) = rest.rsplit_once(" = ").unwrap();
        let result = result.split(' ').next().unwrap();
        let failed = result.starts_with('-');
        let space = self.space(pid);
        match name {
            "execve" | "execveat" if !failed => {
                self.breaks.push(None);
                self.spaces.insert(pid, self.breaks.len() - 1);
            }
            "clone" | "clone3" | "fork" | "vfork" if !failed => {
                // `? ERESTARTNOINTR`: a signal came first, and the call is made again.
                let Ok(child) = result.parse::<u32>() else {
                    return;
                };
                self.parents.remove(&0);
                self.parents.insert(child, (pid, shares_memory(text)));
                // Born now, with its parent's break of now.
                self.space(child);
            }
            _ => {}
        }
        let Some(index) = COUNTED.iter().position(|counted| *counted == name) else {
            return;
        };
        let (made, failures) = &mut self.account.calls[index];
        *made += 1;
        *failures += u64::from(failed);
        if name == "brk" {
            self.break_moved(
                space,
                arguments.trim_end_matches([')', ' ']),
                number(result),
                index,
            );
        }
    }

    fn break_moved(&mut self, space: usize, wanted: &str, now: u64, index: usize) {
        if let Some(before) = self.breaks[space] {
            self.account.grown += now.saturating_sub(before);
            self.account.shrunk += before.saturating_sub(now);
        }
        if wanted != "NULL" && number(wanted) != now {
            self.account.calls[index].1 += 1;
        }
        self.breaks[space] = Some(now);
    }
}

fn shares_memory(call: &str) -> bool {
    call.starts_with("vfork") || call.contains("CLONE_VM")
}

#[test]
fn straces_lines_are_read_rightly() {
    let account = Reader::read(
        "10 execve(\"/bin/sh\", [\"sh\"], 0x7ff /* 3 vars */) = 0\n\
         10 brk(NULL)                         = 0x5000\n\
         10 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, -1, 0) = 0x7f00\n\
         10 brk(0x7000)                       = 0x7000\n\
         10 clone(child_stack=NULL, flags=SIGCHLD) = 11\n\
         11 brk(0x6000 <unfinished ...>\n\
         10 munmap(0x1, 5)                    = -1 EINVAL (Invalid argument)\n\
         11 <... brk resumed>)                = 0x6000\n\
         10 vfork( <unfinished ...>\n\
         12 brk(0x9000)                       = 0x9000\n\
         12 execve(\"/bin/ls\", [\"ls\"], 0x7ff /* 3 vars */ <unfinished ...>\n\
         10 <... vfork resumed>)              = 12\n\
         12 <... execve resumed>)             = 0\n\
         12 brk(NULL)                         = 0x100000\n\
         12 brk(0xffff000)                    = 0x100000\n\
         12 +++ exited with 0 +++\n\
         10 --- SIGCHLD {si_signo=SIGCHLD} ---\n\
         10 brk(NULL)                         = 0x9000\n",
    );
    assert_eq!(
        account,
        Account {
            calls: [(7, 1), (1, 0), (1, 1), (0, 0), (0, 0)],
            grown: 0x2000 + 0x2000,
            shrunk: 0x1000,
        }
    );
}

fn strace(strace: &Path, program: &[OsString], work: &Path) -> Account {
    let log = work.join("strace.out");
    let mut command = Command::new("setarch");
    command
        .arg("-R")
        .arg(strace)
        .args(["-f", "-qq", "-o"])
        .arg(&log);
    command.args([
        "-e",
        "trace=brk,mmap,munmap,mremap,madvise,clone,clone3,fork,vfork,execve,execveat",
        "--",
    ]);
    // Programs do more in some locales than in others.
    spare_locale(&mut command);
    finish(command.args(program).current_dir(work)).expect_code(0);
    Reader::read(&fs::read_to_string(&log).unwrap())
}

fn ours(program: &[OsString], work: &Path) -> Account {
    // Paths are absolute: the folder does not matter to breaktrace, but where files are written it does to gcc.
    let mut words: Vec<OsString> = vec![
        "sh".into(),
        "-c".into(),
        "cd \"$0\" && exec \"$@\"".into(),
        work.into(),
    ];
    words.extend(program.iter().cloned());
    let traced = trace_unchecked(&["--no-aslr"], words);
    traced.ended.expect_code(0);
    for space in &traced.report.address_spaces {
        assert_eq!(space.checks.differing, 0, "{:#?}", space.checks);
    }
    let totals = &traced.report.totals;
    Account {
        calls: COUNTED.map(|name| calls(&traced.report, name)),
        grown: totals.break_grown_bytes,
        shrunk: totals.break_shrunk_bytes,
    }
}

#[track_caller]
fn expect_equal_accounts(program: &[&str]) {
    let (Some(tool), Some(_)) = (installed(&["strace"]), installed(&["setarch"])) else {
        return skip("strace or setarch is not installed");
    };
    if !can_fix_addresses() {
        return not_here("address space randomization cannot be turned off here");
    }
    let folder = folder();
    fs::write(
        folder.path().join("small.c"),
        "#include <stdio.h>\nint main(void) { return puts(\"x\") < 0; }\n",
    )
    .unwrap();
    let lines: String = (0..40_000_u64)
        .map(|line| format!("{:x}\n", line.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    fs::write(folder.path().join("lines"), lines).unwrap();
    let program: Vec<OsString> = program.iter().map(OsString::from).collect();
    // The shell that changes the folder is part of our account, so strace gets it, too.
    let mut words: Vec<OsString> = vec![
        "sh".into(),
        "-c".into(),
        "cd \"$0\" && exec \"$@\"".into(),
        folder.path().into(),
    ];
    words.extend(program.iter().cloned());
    let theirs = strace(&tool, &words, folder.path());
    assert!(theirs.calls[0].0 > 0, "strace saw nothing: {theirs:?}");
    assert_eq!(
        ours(&program, folder.path()),
        theirs,
        "{program:?}: ours, and strace's"
    );
}

macro_rules! equal_accounts {
    ($($(#[$attribute:meta])* $name:ident: $needs:expr, $program:expr;)*) => {$(
        #[test]
        $(#[$attribute])*
        fn $name() {
            if installed(&[$needs]).is_none() {
                return skip(concat!($needs, " is not installed"));
            }
            expect_equal_accounts(&$program);
        }
    )*};
}

const PYTHON: &str = "lists = [list(range(20000)) for _ in range(20)]\n\
                      del lists[5:]\n\
                      big = bytearray(3000000); big.extend(bytes(3000000)); del big\n\
                      print(len(lists))";
const PERL: &str = "my %h = map { $_ => 'x' x 200 } 1..20000; delete $h{$_} for 1..15000; print scalar(keys %h), `echo y`;";
const SQL: &str = "create table t(a,b); with recursive n(i) as (select 1 union all select i+1 from n where i<5000) \
                   insert into t select i, hex(i*i) from n; create index x on t(b); select count(*), max(b) from t;";

equal_accounts! {
    python_agrees: "python3", ["env", "PYTHONHASHSEED=0", &python().unwrap().display().to_string(), "-I", "-S", "-c", PYTHON];
    perl_agrees: "perl", ["env", "PERL_HASH_SEED=0", "PERL_PERTURB_KEYS=0", "perl", "-e", PERL];
    sort_agrees: "sort", ["sort", "--parallel=1", "-S", "1M", "-o", "sorted", "lines"];
    gcc_agrees: "gcc", ["gcc", "-O1", "-c", "small.c", "-o", "small.o"];
    sqlite_agrees: "sqlite3", ["sqlite3", "-batch", ":memory:", SQL];
    a_pipeline_agrees: "sh", ["sh", "-c", "ls /usr /bin | sort -r | tr a-z A-Z | wc -l; (echo sub; exec true); for i in 1 2 3; do date >/dev/null; done"];
}

#[test]
fn the_fixtures_agree() {
    for name in ["brk_moves", "mappings", "fork_tree", "exec_from_thread"] {
        let program = fixture(name).display().to_string();
        if name == "exec_from_thread" {
            // It ends with another code than 0, which strace passes on: a shell makes it 0.
            expect_equal_accounts(&["sh", "-c", "\"$0\"; true", &program]);
        } else {
            expect_equal_accounts(&[&program]);
        }
    }
}

#[test]
fn threads_agree_in_number() {
    // The order of threads differs from run to run, the number of their calls does not.
    expect_equal_accounts(&[&fixture("threads").display().to_string()]);
}
