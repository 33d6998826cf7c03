//! Programs that are not ours on the bundled malloc: what they write and how they end is as on the C library's.
//!
//! Each program is a shell script in a fresh folder, so that its children are on the library too. What it makes is
//! part of its output, as a checksum.

use std::path::Path;
use std::process::Command;

use breaktrace::report::AllocatorReport;
use breaktrace::report::Report;

use crate::preloaded::SETTINGS;
use crate::preloaded::Setting;
use crate::preloaded::preload;
use crate::support::Ended;
use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::skip;

/// Something that programs do.
struct Job {
    /// Programs that it needs.
    needs: &'static [&'static str],
    /// What `sh` runs.
    script: &'static str,
    /// Name of the program whose account must be there.
    program: &'static str,
}

/// Runs a job on the C library's malloc, on the bundled one in several ways, and under breaktrace.
#[track_caller]
fn expect_no_difference(job: &Job) {
    if let Some(missing) = job.needs.iter().find(|name| installed(&[name]).is_none()) {
        return skip(&format!("no {missing}"));
    }
    let system = run(&mut shell(job));
    assert_eq!(
        system.ending(),
        (Some(0), None),
        "it fails on the C library's malloc too: {system:#?}"
    );
    for setting in SETTINGS.iter().filter(|setting| is_worth_it(setting)) {
        let bundled = run(preload(&mut shell(job), setting));
        assert_eq!(
            bundled.ending(),
            system.ending(),
            "{}: {}",
            setting.name,
            bundled.stderr
        );
        assert_eq!(bundled.stdout, system.stdout, "{}", setting.name);
    }
    let (traced, report) = traced(job);
    assert_eq!(traced.ending(), system.ending(), "{traced:#?}");
    assert_eq!(traced.stdout, system.stdout);
    expect_accounts(&report, job.program);
}

/// Real programs take longer than fixtures, so they are run in the ways that differ most.
fn is_worth_it(setting: &Setting) -> bool {
    ["as it comes", "guard, policy eager"].contains(&setting.name)
}

fn shell(job: &Job) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", job.script]);
    command
}

/// Runs a command in a folder of its own, with everything that could make two runs differ held still.
fn run(command: &mut Command) -> Ended {
    let folder = folder();
    finish(still(command, folder.path()))
}

fn still<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command
        .current_dir(folder)
        .env("HOME", folder)
        .env("LC_ALL", "C")
        .env("PYTHONHASHSEED", "0")
        .env("PERL_HASH_SEED", "0")
        .env("GIT_AUTHOR_DATE", "2024-01-01T00:00:00Z")
        .env("GIT_COMMITTER_DATE", "2024-01-01T00:00:00Z")
        .env("GIT_CONFIG_NOSYSTEM", "1")
}

fn traced(job: &Job) -> (Ended, Report) {
    let place = folder();
    let file = place.path().join("report.json");
    let mut command = breaktrace();
    command
        .args(["run", "-q", "--allocator", "bundled", "-o"])
        .arg(&file)
        .args(["--", "sh", "-ec", job.script]);
    let ended = run(&mut command);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}: {ended:#?}"));
    (ended, breaktrace::report::from_json(&text).unwrap())
}

/// The allocator's account agrees with the kernel's in each process, and adds up.
#[track_caller]
fn expect_accounts(report: &Report, program: &str) {
    crate::support::expect_consistency(report);
    let mut told = 0;
    for space in &report.address_spaces {
        let Some(allocator) = &space.allocator else {
            panic!("`{}` has no account", space.program);
        };
        let Some(last) = &allocator.last else {
            // A child that ends or is replaced before it asks for memory has nothing to tell.
            assert!(
                !is_program(&space.program, program),
                "`{}` tells nothing: {:?}",
                space.program,
                allocator.absence
            );
            continue;
        };
        told += usize::from(is_program(&space.program, program));
        expect_agreement(&space.program, allocator);
        if last.still {
            let figures = last.figures.all().unwrap();
            assert!(figures.adds_up(), "`{}`: {figures:#?}", space.program);
        }
        assert_eq!(
            allocator.heap_errors.total, 0,
            "`{}`: {:#?}",
            space.program, allocator.heap_errors
        );
    }
    assert!(told > 0, "no account of `{program}`");
}

fn is_program(path: &str, name: &str) -> bool {
    let file = Path::new(path).file_name().and_then(|file| file.to_str());
    file.unwrap_or(path).starts_with(name)
}

#[track_caller]
fn expect_agreement(program: &str, allocator: &AllocatorReport) {
    assert_eq!(allocator.name, "bundled");
    let checks = &allocator.checks;
    assert_eq!(checks.differing, 0, "`{program}`: {checks:#?}");
    assert_eq!(checks.sums_differing, 0, "`{program}`: {checks:#?}");
}

#[test]
fn gcc_makes_the_same_object_file() {
    expect_no_difference(&Job {
        needs: &["gcc"],
        program: "cc1",
        script: r#"
            i=0
            while [ $i -lt 150 ]; do
                echo "struct s$i { int a[$i + 1]; struct s$i *next; long b; };"
                echo "long f$i(struct s$i *p, int n) { long t = $i; for (int k = 0; k < n && p; k++, p = p->next)"
                echo "  { switch (p->a[k % ($i + 1)] % 7) { case 0: t += p->b; break; case 3: t ^= k * $i; break;"
                echo "  default: t -= p->b / (k + 1); } } return t; }"
                i=$((i + 1))
            done > big.c
            gcc -O2 -c -o big.o big.c
            cksum < big.o
        "#,
    });
}

#[test]
fn gxx_builds_a_program_that_runs_the_same() {
    expect_no_difference(&Job {
        needs: &["g++"],
        program: "program",
        script: r#"
            cat > program.cpp <<'END'
            #include <algorithm>
            #include <iostream>
            #include <map>
            #include <memory>
            #include <set>
            #include <sstream>
            #include <string>
            #include <thread>
            #include <vector>
            static unsigned long run(unsigned seed) {
                std::map<std::string, std::vector<std::unique_ptr<std::string>>> words;
                std::multiset<unsigned> numbers;
                for (unsigned i = 0; i < 60000; i++) {
                    seed = seed * 1664525 + 1013904223;
                    std::ostringstream text;
                    text << seed % 997 << "-" << std::string(seed % 50, 'x');
                    words[text.str().substr(0, 4)].push_back(std::make_unique<std::string>(text.str()));
                    numbers.insert(seed % 5000);
                    if (numbers.size() > 3000) numbers.erase(numbers.begin());
                }
                unsigned long sum = 0;
                for (auto &entry : words) {
                    std::sort(entry.second.begin(), entry.second.end(), [](auto &a, auto &b) { return *a < *b; });
                    for (auto &word : entry.second) for (char c : *word) sum = sum * 31 + static_cast<unsigned char>(c);
                }
                for (unsigned n : numbers) sum = sum * 31 + n;
                return sum;
            }
            int main() {
                unsigned long sums[3];
                std::vector<std::thread> threads;
                for (unsigned i = 0; i < 3; i++) threads.emplace_back([i, &sums] { sums[i] = run(i + 1); });
                for (auto &thread : threads) thread.join();
                for (unsigned long sum : sums) std::cout << sum << "\n";
            }
END
            g++ -O1 -pthread -o program program.cpp
            cksum < program
            ./program
        "#,
    });
}

#[test]
fn git_packs_and_checks_a_repository() {
    expect_no_difference(&Job {
        needs: &["git"],
        program: "git",
        script: r#"
            git init -q -b main repository
            cd repository
            git config user.name Tester
            git config user.email tester@example.org
            git config gc.auto 0
            for round in 1 2 3 4 5 6; do
                for file in 1 2 3 4 5 6 7 8 9 10; do
                    seq $((round * file)) $((round * file * 300)) > file$file
                done
                git add .
                git commit -q -m "round $round"
            done
            git -c pack.threads=2 repack -q -a -d -f
            git fsck --full --strict
            git log --stat --format=%H | cksum
            git diff HEAD~5 HEAD | cksum
        "#,
    });
}

#[test]
fn sqlite_loads_and_indexes() {
    expect_no_difference(&Job {
        needs: &["sqlite3"],
        program: "sqlite3",
        script: r#"
            sqlite3 data.db "
                create table t(id integer primary key, a text, b integer, c blob);
                with recursive n(i) as (select 1 union all select i + 1 from n where i < 60000)
                insert into t select i, hex(i * 7919 % 10007), i * 31 % 997, zeroblob(i % 100) from n;
                create index ta on t(a, b);
                create index tb on t(b, length(c));
                delete from t where id % 3 = 0;
                select count(*), sum(b), sum(length(c)), min(a), max(a) from t;
                select b, count(*), group_concat(a, '') from t where b < 3 group by b order by b;
                pragma integrity_check;
                vacuum;
            "
            cksum < data.db
        "#,
    });
}

#[test]
fn perl_counts_sorts_and_matches() {
    expect_no_difference(&Job {
        needs: &["perl"],
        program: "perl",
        script: r#"
            perl -e '
                my (%seen, @list);
                my $x = 1;
                for my $i (1 .. 150000) {
                    $x = ($x * 1103515245 + 12345) % 2147483648;
                    my $word = join "", map { chr(97 + ($x >> $_) % 26) } 3, 7, 11, 15;
                    $seen{$word}++;
                    push @list, $word . "x" x ($x % 40) if $i % 3 == 0;
                }
                my $text = join " ", sort @list;
                my $count = () = $text =~ /[aeiou]{2,}x*/g;
                $text =~ s/x+/-/g;
                printf "%d %d %d %s\n", scalar(keys %seen), $count, length($text), substr($text, 1000, 50);
                my @deep; push @deep, { n => $_, list => [1 .. $_ % 20] } for 1 .. 30000;
                @deep = grep { @{$_->{list}} % 2 } @deep;
                print scalar(@deep), "\n";
            '
        "#,
    });
}

#[test]
fn node_builds_objects_and_buffers() {
    expect_no_difference(&Job {
        needs: &["node"],
        program: "node",
        script: r#"
            node -e '
                const { createHash } = require("crypto");
                const zlib = require("zlib");
                const map = new Map();
                let x = 1;
                for (let i = 0; i < 100000; i++) {
                    x = (x * 48271) % 2147483647;
                    map.set("k" + (x % 5000), Buffer.alloc(x % 2000, i & 255));
                }
                const hash = createHash("sha256");
                for (const key of [...map.keys()].sort()) hash.update(key).update(map.get(key));
                console.log(map.size, hash.digest("hex"));
                const packed = zlib.deflateSync(Buffer.concat([...map.values()].slice(0, 1000)));
                console.log(zlib.inflateSync(packed).length);
            '
        "#,
    });
}

#[test]
fn sort_with_threads_sorts() {
    expect_no_difference(&Job {
        needs: &["sort", "awk"],
        program: "sort",
        script: r#"
            awk 'BEGIN { x = 1; for (i = 0; i < 300000; i++) { x = (x * 48271) % 2147483647; print x, i % 977 } }' > lines
            sort --parallel=4 -S 4M -k2,2n -k1,1 lines | cksum
            sort --parallel=4 -u -k2,2 lines | wc -l
        "#,
    });
}

#[test]
fn bash_scripts_run() {
    expect_no_difference(&Job {
        needs: &["bash"],
        program: "bash",
        script: r#"
            bash -c '
                declare -A counts
                words=()
                for ((i = 0; i < 20000; i++)); do
                    word="w$((i * 7919 % 1009))"
                    counts[$word]=$((${counts[$word]:-0} + i))
                    words+=("$word$i")
                done
                text="${words[*]}"
                echo "${#counts[@]} ${#text} ${counts[w5]} ${text:5000:40}"
                for n in {1..40}; do (echo "$(echo "sub $n" | tr a-z A-Z)"); done | sort | cksum
                long=x; for n in {1..18}; do long+=$long; done; echo ${#long} "${long//xx/y}" | cksum
            '
        "#,
    });
}

#[test]
fn redis_serves_the_same_under_load() {
    expect_no_difference(&Job {
        needs: &["redis-server", "redis-cli", "redis-benchmark"],
        program: "redis",
        script: r#"
            redis-server --port 0 --unixsocket "$PWD/socket" --save "" --enable-debug-command local --daemonize no \
                --activedefrag no --hz 50 --io-threads 2 > log 2>&1 &
            until redis-cli -s socket ping > answer 2>&1 && grep -q PONG answer; do
                kill -0 $! || { cat log; exit 1; }
            done
            redis-benchmark -s socket -n 1500 -c 10 -d 200 -r 1000 -P 4 -q -t ping,set,incr,lpush,lpop,hset,zadd,mset > load
            redis-cli -s socket flushall
            awk 'BEGIN { for (i = 0; i < 10000; i++) {
                print "set key" i % 3000 " " i * 7919; print "lpush list" i % 50 " value" i
                print "hset hash" i % 100 " field" i " " i * 31; print "zadd sorted" i % 20 " " i % 977 " member" i
                if (i % 5 == 0) print "del key" i % 700
                if (i % 3 == 0) print "append text" i % 30 " " i i i i i
            } }' | redis-cli -s socket | cksum
            redis-cli -s socket debug digest
            redis-cli -s socket dbsize
            redis-cli -s socket shutdown nosave
            wait
        "#,
    });
}

/// Python's own tests of its core types.
const CORE_TYPES: &str = "test_list test_dict test_set test_bytes test_int test_float test_long test_unicode \
    test_tuple test_deque test_array test_struct test_memoryview test_string test_gc test_slice test_sort test_heapq \
    test_generators test_dictviews";

/// Whether Python's test suite is there, which distributions package apart; says so where it is not.
fn has_python_tests() -> bool {
    let there = Command::new("/usr/bin/python3")
        .args([
            "-c",
            "import test.test_list, test.test_dict, test.test_struct",
        ])
        .output()
        .is_ok_and(|output| output.status.success());
    if !there {
        skip("no /usr/bin/python3 with its test suite (Debian: libpython3.N-testsuite)");
    }
    there
}

#[track_caller]
fn expect_python_passes(variables: &[(&str, &str)], tests: &str) {
    if !has_python_tests() {
        return;
    }
    let mut command = Command::new("/usr/bin/python3");
    command
        .args(["-m", "test", "-q"])
        .args(tests.split_whitespace())
        .envs(variables.iter().copied());
    let ended = run(preload(&mut command, &SETTINGS[0]));
    assert_eq!(ended.ending(), (Some(0), None), "{ended:#?}");
}

#[test]
fn python_passes_its_own_tests() {
    expect_python_passes(
        &[],
        "test_list test_dict test_set test_bytes test_unicode test_generators",
    );
}

#[test]
fn python_without_its_own_pools_passes_its_own_tests() {
    expect_python_passes(&[("PYTHONMALLOC", "malloc")], CORE_TYPES);
}

#[test]
fn python_builds_and_drops_objects() {
    expect_no_difference(&Job {
        needs: &["/usr/bin/python3"],
        program: "python3",
        script: r#"
            PYTHONMALLOC=malloc /usr/bin/python3 -c '
import hashlib, json, re, threading
def work(seed, out):
    x, table = seed, {}
    for i in range(30000):
        x = x * 48271 % 2147483647
        table.setdefault(str(x % 997), []).append("y" * (x % 100))
    text = json.dumps(table, sort_keys=True)
    out[seed] = hashlib.sha256(text.encode()).hexdigest(), len(re.findall("y{50,}", text))
out = {}
threads = [threading.Thread(target=work, args=(n, out)) for n in range(1, 5)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sorted(out.items()))
print(sum(len(str(7 ** n)) for n in range(0, 3000, 7)))
'
        "#,
    });
}
