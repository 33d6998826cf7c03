//! `completions` and `man`: what is generated from the command line's definition.

use std::io;
use std::io::Write;
use std::path::Path;

use clap::Command;
use clap::CommandFactory;

use super::Ending;
use super::Failure;
use super::USAGE;
use super::args;
use super::args::Cli;
use super::output::cannot_write;
use super::output::excuse_closed_pipe;
use super::output::write_whole;

/// `breaktrace completions`.
pub(super) fn completions(arguments: &args::Completions) -> Result<Ending, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Cli::command(),
        env!("CARGO_PKG_NAME"),
        &mut script,
    );
    print(&script)
}

/// `breaktrace man`.
pub(super) fn man(arguments: &args::Man) -> Result<Ending, Failure> {
    let mut root = Cli::command();
    root.build();
    if let Some(folder) = &arguments.dir {
        return write_all(&root, folder);
    }
    let page = match &arguments.of {
        None => page(&root),
        Some(name) => {
            let command = root.find_subcommand(name).ok_or_else(|| {
                let known: Vec<&str> = root.get_subcommands().map(Command::get_name).collect();
                Failure::new(format!("there is no command `{name}`"))
                    .hint(known.join(", "))
                    .code(USAGE)
            })?;
            page(command)
        }
    };
    print(&page.map_err(Failure::new)?)
}

/// A page for each command: `breaktrace.1`, `breaktrace-run.1`, …
fn write_all(root: &Command, folder: &Path) -> Result<Ending, Failure> {
    let commands = std::iter::once(root).chain(root.get_subcommands());
    for command in commands {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = folder.join(format!("{name}.1"));
        let page = page(command).map_err(Failure::new)?;
        write_whole(&path, &page).map_err(|error| cannot_write(&path, &error))?;
    }
    Ok(Ending::Code(0))
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}

fn print(bytes: &[u8]) -> Result<Ending, Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .or_else(|error| excuse_closed_pipe("stdout", error))?;
    Ok(Ending::Code(0))
}
