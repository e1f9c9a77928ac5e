//! What is wrong with the configuration, placed, and how it is shown. Pure.
//!
//! A problem carries its source line with it, so that it can be shown anywhere, also after the files are gone. What
//! is shown never carries a control character of the file: a terminal must not obey a configuration.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

/// The widest piece of a source line that is shown, in characters.
const EXCERPT_MAX: usize = 140;

/// One thing wrong with the configuration, with its place and a way to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; `None` when nothing was written that could be pointed at.
    pub place: Option<Place>,
    /// What is wrong.
    pub what: String,
    /// A way to mend it.
    pub help: Option<String>,
}

/// Where a problem is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line and column; `None` when the whole file is meant.
    pub mark: Option<Mark>,
}

/// A piece of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line, or the part of a long line around the place, fit to be shown.
    pub excerpt: String,
    /// Characters of the excerpt before the place.
    pub caret: usize,
    /// Characters of the excerpt that are meant; at least 1.
    pub width: usize,
}

impl Mark {
    /// The place of the bytes `start..end` in `text`.
    pub(super) fn new(text: &str, start: usize, end: usize) -> Mark {
        let start = floor(text, start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text.get(start..).and_then(|rest| rest.find('\n')).map_or(text.len(), |length| start + length);
        let end = floor(text, end).clamp(start, line_end);
        let head = text.get(line_start..start).unwrap_or_default();
        let meant = text.get(start..end).unwrap_or_default();
        let tail = text.get(end..line_end).unwrap_or_default().trim_end_matches('\r');

        // Of a long line only the surroundings are kept: a file of one line must not fill the screen.
        let head_count = head.chars().count();
        let skipped = if head_count + meant.chars().count() > EXCERPT_MAX { head_count.saturating_sub(40) } else { 0 };
        let mut excerpt = String::new();
        if skipped > 0 {
            excerpt.push('…');
        }
        head.chars().skip(skipped).for_each(|c| push_visible(&mut excerpt, c));
        let caret = excerpt.chars().count();
        for c in meant.chars().take(EXCERPT_MAX) {
            push_visible(&mut excerpt, c);
        }
        let width = (excerpt.chars().count() - caret).max(1);
        let room = EXCERPT_MAX.saturating_sub(excerpt.chars().count());
        tail.chars().take(room).for_each(|c| push_visible(&mut excerpt, c));
        if tail.chars().nth(room).is_some() {
            excerpt.push('…');
        }
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Mark { line, column: head_count + 1, excerpt, caret, width }
    }
}

/// The greatest character boundary that is not after `index`.
fn floor(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

fn push_visible(line: &mut String, c: char) {
    match c {
        '\t' => line.push(' '),
        // The marks that turn the direction of writing could show one line and mean another.
        c if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
        {
            line.extend(c.escape_unicode());
        }
        c => line.push(c),
    }
}

/// `text` without anything that a terminal would obey.
pub(super) fn visible(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    text.chars().for_each(|c| push_visible(&mut line, c));
    line
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", visible(&self.file.display().to_string()))?;
        match &self.mark {
            Some(Mark { line, column, .. }) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f, "")
    }
}

impl Problem {
    fn show(&self, f: &mut impl fmt::Write, kind: &str) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        writeln!(f, "{kind}{}", visible(&self.what))?;
        if let Some(mark) = self.place.as_ref().and_then(|place| place.mark.as_ref()) {
            writeln!(f, "    {}", mark.excerpt)?;
            writeln!(f, "    {}{}", " ".repeat(mark.caret), "^".repeat(mark.width))?;
        }
        match &self.help {
            Some(help) => writeln!(f, "    help: {}", visible(help)),
            None => Ok(()),
        }
    }
}

/// All problems and warnings as a text to print; the last line counts them. Empty when there are none.
pub fn render(problems: &[Problem], warnings: &[Problem]) -> String {
    let mut text = String::new();
    for (list, kind) in [(problems, ""), (warnings, "warning: ")] {
        for problem in list {
            // Writing to a String cannot fail.
            let _ok = problem.show(&mut text, kind);
            text.push('\n');
        }
    }
    let count = |number: usize, noun: &str| match number {
        0 => None,
        1 => Some(format!("1 {noun}")),
        _ => Some(format!("{number} {noun}s")),
    };
    let counts: Vec<String> =
        [count(problems.len(), "problem"), count(warnings.len(), "warning")].into_iter().flatten().collect();
    if !counts.is_empty() {
        let _ok = writeln!(text, "{}", counts.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_the_caret_stands_under_the_span() {
        let text = "a = 1\r\nunit = \"°C\" # é\x1b[31m\r\n";
        let start = text.find('#').unwrap();
        let mark = Mark::new(text, start, start + 1);
        assert_eq!((mark.line, mark.column, mark.caret, mark.width), (2, 13, 12, 1));
        assert_eq!(mark.excerpt, "unit = \"°C\" # é\\u{1b}[31m");
    }

    #[test]
    fn a_place_outside_of_the_text_is_shown_all_the_same() {
        let mark = Mark::new("a\n", 99, 120);
        assert_eq!((mark.line, mark.column, mark.width), (2, 1, 1));
        let mark = Mark::new("", 0, 0);
        assert_eq!((mark.line, mark.column), (1, 1));
        let mark = Mark::new("é", 1, 2);
        assert_eq!((mark.line, mark.column), (1, 1));
    }

    #[test]
    fn of_a_long_line_only_the_surroundings_are_shown() {
        let text = format!("{}XYZ{}", "a".repeat(5000), "b".repeat(5000));
        let mark = Mark::new(&text, 5000, 5003);
        assert_eq!(mark.column, 5001);
        assert!(mark.excerpt.chars().count() <= EXCERPT_MAX + 2);
        let meant: String = mark.excerpt.chars().skip(mark.caret).take(mark.width).collect();
        assert_eq!(meant, "XYZ");
    }
}
