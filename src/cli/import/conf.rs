//! Mosquitto's files as lines with their places (mosquitto.conf(5)).

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More than this is no configuration.
const FILE_BYTES_MAX: u64 = 4 << 20;
const FILES_MAX: usize = 1000;

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub file: Arc<Path>,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(into, "{}:{}", self.file.display(), self.line)
    }
}

/// One line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub place: Place,
    pub key: String,
    /// What follows the key, without blanks around it.
    pub value: String,
}

impl Line {
    pub fn is_true(&self) -> bool {
        matches!(self.value.as_str(), "true" | "1")
    }

    pub fn words(&self) -> Vec<&str> {
        self.value.split_whitespace().collect()
    }
}

/// What is not carried, or not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub place: Place,
    pub line: String,
    pub why: String,
}

impl fmt::Display for Note {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(into, "{}: {}: {}", self.place, self.line, self.why)
    }
}

/// The notes of an import.
#[derive(Debug, Default)]
pub(super) struct Notes(pub Vec<Note>);

impl Notes {
    pub fn add(&mut self, line: &Line, why: impl Into<String>) {
        // A password stays where it is.
        let value = if line.key.contains("password") && !line.key.ends_with("_file") { "…" } else { &line.value };
        let shown = format!("{} {value}", line.key).trim().chars().filter(|c| !c.is_control()).take(120).collect();
        self.0.push(Note { place: line.place.clone(), line: shown, why: why.into() });
    }
}

/// The lines of a file that are no comments.
pub(super) fn read(path: &Path) -> Result<Vec<Line>, String> {
    let size = fs::metadata(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("{} is larger than 4 MiB", path.display()));
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(lines(path, &String::from_utf8_lossy(&bytes)))
}

fn lines(path: &Path, text: &str) -> Vec<Line> {
    let file: Arc<Path> = Arc::from(path);
    let said = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    said.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let place = Place { file: file.clone(), line: number };
            Line { place, key: key.to_owned(), value: value.trim().to_owned() }
        })
        .collect()
}

/// The configuration with what its `include_dir` lines bring, in their places.
pub(super) fn read_all(path: &Path, notes: &mut Notes) -> Result<Vec<Line>, String> {
    let mut all = Vec::new();
    for line in read(path)? {
        if line.key != "include_dir" {
            all.push(line);
            continue;
        }
        let directory = beside(path, &line.value);
        let Ok(entries) = fs::read_dir(&directory) else {
            notes.add(&line, "this directory cannot be listed");
            continue;
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).take(FILES_MAX).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
        files.sort_by_key(|file| file.to_string_lossy().to_lowercase());
        for file in files {
            match read(&file) {
                Ok(lines) => all.extend(lines),
                Err(why) => notes.add(&line, why),
            }
        }
    }
    Ok(all)
}

/// A path as Mosquitto's configuration names it; where it is relative, from the file that names it.
pub(super) fn beside(file: &Path, named: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_numbers_and_comments_are_none() {
        let read = lines(Path::new("m.conf"), "# a\n\nlistener 1883  127.0.0.1 \r\n  #b\nallow_anonymous\ttrue");
        let shown: Vec<String> =
            read.iter().map(|line| format!("{} [{}] [{}]", line.place, line.key, line.value)).collect();
        assert_eq!(shown, ["m.conf:3 [listener] [1883  127.0.0.1]", "m.conf:5 [allow_anonymous] [true]"]);
    }

    #[test]
    fn a_note_shows_its_line_but_no_password() {
        let mut notes = Notes::default();
        for line in lines(Path::new("m.conf"), "remote_password secret\npassword_file /etc/p") {
            notes.add(&line, "why");
        }
        let shown: Vec<String> = notes.0.iter().map(Note::to_string).collect();
        assert_eq!(shown, ["m.conf:1: remote_password …: why", "m.conf:2: password_file /etc/p: why"]);
    }
}
