//! `dvs man`: manual pages, from the same definitions as the help.

use crate::arguments::CommandLine;
use crate::failure::Failure;
use crate::output;
use clap::CommandFactory;
use dvs_node::folders::reason;
use std::path::Path;

/// Prints dvs(1), or writes a page for it and each of its commands into a folder.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn man(folder: Option<&Path>) -> Result<u8, Failure> {
    let mut command = CommandLine::command();
    command.build();
    let Some(folder) = folder else {
        output::print(&String::from_utf8_lossy(&page(&command, "dvs")?))?;
        return Ok(0);
    };
    std::fs::create_dir_all(folder)
        .map_err(|error| Failure::new(format!("{}: {}", folder.display(), reason(&error))))?;
    write_all(&command, "dvs", folder)?;
    Ok(0)
}

fn write_all(command: &clap::Command, name: &str, folder: &Path) -> Result<(), Failure> {
    let path = folder.join(format!("{name}.1"));
    std::fs::write(&path, page(command, name)?)
        .map_err(|error| Failure::new(format!("{}: {}", path.display(), reason(&error))))?;
    output::print_line(&path.display().to_string())?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        if sub.get_name() != "help" {
            write_all(sub, &format!("{name}-{}", sub.get_name()), folder)?;
        }
    }
    Ok(())
}

fn page(command: &clap::Command, name: &str) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone().disable_help_subcommand(true))
        .title(name)
        .render(&mut text)
        .map_err(|error| Failure::new(format!("the page of {name}: {}", reason(&error))))?;
    Ok(text)
}
