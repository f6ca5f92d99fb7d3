//! `lifemon completions` and `lifemon man`: generated from the command line's definition.

use clap::CommandFactory as _;

use super::{Cli, Code};
use crate::report::out;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Prints completions.
pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<Code> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lifemon", &mut text);
    out::print(&String::from_utf8_lossy(&text))?;
    Ok(Code::Done)
}

/// Prints the manual page: the program, then each command.
pub(super) fn man() -> anyhow::Result<Code> {
    let mut command = Cli::command();
    command.build();
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        let man = clap_mangen::Man::new(sub.clone());
        text.extend(format!(".SH COMMAND {}\n", sub.get_name().to_uppercase()).bytes());
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
    }
    out::print(&String::from_utf8_lossy(&text))?;
    Ok(Code::Done)
}
