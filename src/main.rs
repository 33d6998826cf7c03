//! temporary driver
use breaktrace::tracer::*;
fn main() {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let options = Options { follow: true, verify: false, latency_hold: std::env::var_os("NOHOLD").is_none(), duration: None, every: None };
    let seccomp = std::env::var_os("NOSECCOMP").is_none();
    let mut t = if std::env::var_os("ATTACH").is_some() {
        let pids: Vec<u32> = args.iter().map(|a| a.to_str().unwrap().parse().unwrap()).collect();
        match Tracer::attach(&pids, options) { Ok(t) => t, Err(e) => { eprintln!("{e}\n  {:?}", e.hint()); return } }
    } else {
        let l = Launch { program: args[0].clone(), arguments: args[1..].to_vec(), seccomp, ..Default::default() };
        match Tracer::launch(&l, options) { Ok(t) => t, Err(e) => { eprintln!("{e}\n  {:?}", e.hint()); return } }
    };
    let quiet = std::env::var_os("QUIET").is_some();
    let mut n = 0u64;
    while let Some(e) = t.next_event().unwrap() {
        n += 1;
        if !quiet { let s = serde_json::to_string(&e).unwrap(); eprintln!("{}", s.chars().take(260).collect::<String>()); }
    }
    eprintln!("{n} events, {:?}", t.launched_outcome());
}
