//! The command line as manual pages: one for the program, and one for each subcommand.

use std::io;

use clap::Command;
use clap_mangen::Man;

use crate::roff;

/// What stands in `tidegate(1)` beside the command line.
const PROGRAM: &str = "\
.SH EXIT STATUS
.TP
.B 0
drained and stopped, or done
.TP
.B 64
wrong usage
.TP
.B 70
a failed stage, or a bug
.TP
.B 75
try again
.TP
.B 78
wrong configuration; every problem is printed at its place
.SH FILES
.TP
.I /etc/tidegate/tidegate.toml
the configuration; files in
.I /etc/tidegate/conf.d
are read after it, in the order of their names
.TP
.I /usr/lib/tidegate/*.toml
what a vendor has set; the owner\\(cqs files win
.TP
.I /var/lib/tidegate
the state directory: the queue, the ledger, the identity, and
.I conf.d
of this board, which wins over all
.SH SEE ALSO
";

/// Each page's file name and text, the program's first.
pub fn pages(command: Command) -> io::Result<Vec<(String, String)>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, None, &mut pages)?;
    Ok(pages)
}

fn collect(command: &Command, parent: Option<&str>, pages: &mut Vec<(String, String)>) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let children: Vec<&Command> = command.get_subcommands().filter(|child| !child.is_hide_set()).collect();
    let man = Man::new(command.clone()).source(concat!("tidegate ", env!("CARGO_PKG_VERSION"))).manual("Tidegate");
    let mut bytes = Vec::new();
    man.render_title(&mut bytes)?;
    // Paths and options are copied from pages: they are not parted at the end of a line.
    bytes.extend_from_slice(b".nh\n");
    man.render_name_section(&mut bytes)?;
    man.render_synopsis_section(&mut bytes)?;
    man.render_description_section(&mut bytes)?;
    man.render_options_section(&mut bytes)?;
    if !children.is_empty() {
        man.render_subcommands_section(&mut bytes)?;
    }
    let mut page = String::from_utf8(bytes).map_err(io::Error::other)?;
    page.push_str(&more(command));
    let mut related: Vec<String> = children.iter().map(|child| format!("{name}-{}", child.get_name())).collect();
    match parent {
        None => {
            page.push_str(PROGRAM);
            related.push("tidegate.toml".to_owned());
        }
        Some(parent) => {
            page.push_str(".SH SEE ALSO\n");
            related.insert(0, parent.to_owned());
        }
    }
    page.push_str(&see(&related));
    pages.push((format!("{name}.1"), page));
    for child in children {
        collect(child, Some(&name), pages)?;
    }
    Ok(())
}

/// What stands under a command's help: words, then examples.
fn more(command: &Command) -> String {
    let Some(words) = command.get_after_long_help().or_else(|| command.get_after_help()) else {
        return String::new();
    };
    let words = words.to_string();
    let (details, examples) = match (words.find("Examples:\n"), words.find("Example: ")) {
        (Some(at), _) => (words.get(..at), words.get(at + "Examples:\n".len()..)),
        (None, Some(at)) => (words.get(..at), words.get(at + "Example: ".len()..)),
        (None, None) => (Some(words.as_str()), None),
    };
    let mut out = String::new();
    if let Some(details) = details.map(str::trim).filter(|details| !details.is_empty()) {
        out.push_str(&format!(".SH DETAILS\n{}", roff::paragraphs(details)));
    }
    if let Some(examples) = examples {
        let examples: Vec<&str> = examples.lines().map(str::trim).collect();
        out.push_str(&format!(".SH EXAMPLES\n{}", roff::verbatim(&examples.join("\n"))));
    }
    out
}

fn see(pages: &[String]) -> String {
    let section = |page: &str| if page.ends_with(".toml") { 5 } else { 1 };
    let shown: Vec<String> = pages.iter().map(|page| format!(".BR {} ({})", roff::text(page), section(page))).collect();
    shown.join(" ,\n") + "\n"
}
