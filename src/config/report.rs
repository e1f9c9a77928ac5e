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
        // A secret that somebody wrote in spite of all must not reach the journal by way of its own problem.
        let masked = mask(text.get(line_start..line_end).unwrap_or_default());
        let (head, rest) = masked.split_at(chars(text, line_start, start).min(masked.len()));
        let (meant, tail) = rest.split_at(chars(text, start, end).min(rest.len()));

        // Of a long line only the surroundings are kept: a file of one line must not fill the screen.
        let skipped = if head.len() + meant.len() > EXCERPT_MAX { head.len().saturating_sub(40) } else { 0 };
        let mut excerpt = String::new();
        if skipped > 0 {
            excerpt.push('…');
        }
        head.iter().skip(skipped).for_each(|c| push_visible(&mut excerpt, *c));
        let caret = excerpt.chars().count();
        meant.iter().take(EXCERPT_MAX).for_each(|c| push_visible(&mut excerpt, *c));
        let width = (excerpt.chars().count() - caret).max(1);
        let room = EXCERPT_MAX.saturating_sub(excerpt.chars().count());
        tail.iter().take(room).filter(|c| **c != '\r').for_each(|c| push_visible(&mut excerpt, *c));
        if tail.len() > room {
            excerpt.push('…');
        }
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Mark { line, column: head.len() + 1, excerpt, caret, width }
    }
}

fn chars(text: &str, start: usize, end: usize) -> usize {
    text.get(start..end).unwrap_or_default().chars().count()
}

/// The characters of a line, with what follows `password =` and what stands before `@` in a url made unreadable.
fn mask(line: &str) -> Vec<char> {
    let mut masked: Vec<char> = line.chars().collect();
    let lower: Vec<char> = line.chars().map(|c| c.to_ascii_lowercase()).collect();
    for word in ["password", "passwd", "secret", "token"] {
        let word: Vec<char> = word.chars().collect();
        let places: Vec<usize> =
            lower.windows(word.len()).enumerate().filter(|(_, window)| *window == word).map(|(at, _)| at).collect();
        for at in places {
            let rest = || lower.iter().copied().enumerate().skip(at);
            let name: String = rest().map(|(_, c)| c).take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            // The name of a file is no secret.
            if name.ends_with("_file") {
                continue;
            }
            let mut value = rest().skip(name.len()).skip_while(|(_, c)| matches!(c, ' ' | '\t' | '"' | '\''));
            if value.next().map(|(_, c)| c) != Some('=') {
                continue;
            }
            let mut value = value.skip_while(|(_, c)| matches!(c, ' ' | '\t'));
            let Some((_, quote @ ('"' | '\''))) = value.next() else { continue };
            // A hash is made to be written down; a password in its place is not.
            let mut value = value.peekable();
            if name.ends_with("_hash") && value.peek().is_some_and(|(_, c)| *c == '$') {
                continue;
            }
            for (at, _) in value.take_while(|(_, c)| *c != quote) {
                if let Some(slot) = masked.get_mut(at) {
                    *slot = '*';
                }
            }
        }
    }
    for at in 0..lower.len() {
        if lower.get(at) != Some(&'@') {
            continue;
        }
        for before in (0..at).rev() {
            let is_end = matches!(lower.get(before), Some('"' | '\'' | ' ' | '\t'))
                || (before > 0 && lower.get(before - 1..=before) == Some(&['/', '/']));
            match masked.get_mut(before) {
                Some(slot) if !is_end && *slot != '@' => *slot = '*',
                _ => break,
            }
        }
    }
    masked
}

/// A piece of a sentence: a name that was written, of a length that leaves room for the sentence.
pub(super) fn clip(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
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
    fn a_secret_does_not_reach_the_report() {
        for line in [
            "password = \"hunter2\"",
            "x = { password='hunter2' }",
            "\"api_token\" = \"hunter2\" # x",
            "url = \"mqtts://me:hunter2@h\"",
            "url = \"me:hunter2@h\"",
            "PASSWORD = \"hunter2",
        ] {
            let mark = Mark::new(line, 0, 3);
            assert!(!mark.excerpt.contains("hunter2"), "{}", mark.excerpt);
            assert_eq!(mark.excerpt.chars().count(), line.chars().count());
        }
        assert_eq!(Mark::new("password_file = \"/etc/x\"", 0, 1).excerpt, "password_file = \"/etc/x\"");
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
