//! Plain text as roff. Pure.

/// One line of text: nothing in it is a command, and what stands between backticks is bold.
pub fn text(line: &str) -> String {
    let mut out = String::new();
    let mut is_bold = false;
    for character in line.chars() {
        match character {
            '`' => {
                out.push_str(if is_bold { "\\fR" } else { "\\fB" });
                is_bold = !is_bold;
            }
            '\\' => out.push_str("\\e"),
            // A hyphen that is typed must stay one when it is copied from a page.
            '-' => out.push_str("\\-"),
            other => out.push(other),
        }
    }
    if is_bold {
        out.push_str("\\fR");
    }
    // At the start of a line these two begin a command.
    if out.starts_with(['.', '\'']) { format!("\\&{out}") } else { out }
}

/// A block that is shown as it stands.
pub fn verbatim(block: &str) -> String {
    let lines: String = block.lines().map(|line| text(line) + "\n").collect();
    format!(".PP\n.RS 4\n.nf\n{lines}.fi\n.RE\n")
}

/// Paragraphs that are filled; an empty line parts them.
pub fn paragraphs(words: &str) -> String {
    words.lines().map(|line| if line.trim().is_empty() { ".PP\n".to_owned() } else { text(line) + "\n" }).collect()
}
