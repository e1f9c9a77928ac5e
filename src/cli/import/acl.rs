//! Mosquitto's password_file and acl_file as users.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::conf::{Line, Notes, read};
use crate::config::{self, toml_key, toml_text};
use crate::message::is_reserved;

/// The group of what `pattern` lines say: they hold for everybody.
const EVERYBODY: &str = "everybody";

/// Lists of topics of one user.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Rights {
    publish: Vec<String>,
    subscribe: Vec<String>,
    deny: Vec<String>,
    /// Something that is denied cannot be said: then nothing is allowed.
    is_closed: bool,
}

/// Everybody who was found.
#[derive(Debug, Default)]
pub(super) struct People {
    /// Hash by name.
    passwords: BTreeMap<String, String>,
    rights: BTreeMap<String, Rights>,
    /// Where each is named first.
    lines: BTreeMap<String, Line>,
    anonymous: Rights,
    everybody: Rights,
    has_acl: bool,
    /// There is a listener where the name in a certificate is the user's.
    pub by_certificate: bool,
}

impl People {
    pub fn read_passwords(&mut self, path: &Path, asked: &Line, notes: &mut Notes) {
        let lines = match read(path) {
            Ok(lines) => lines,
            Err(why) => return notes.add(asked, why),
        };
        for mut line in lines {
            // Neither name nor hash has a blank, but a wrong line may.
            let whole = format!("{} {}", line.key, line.value);
            let Some((name, hash)) = whole.trim().split_once(':') else {
                line.key = "(a line)".to_owned();
                line.value.clear();
                notes.add(&line, "this is not `name:hash`");
                continue;
            };
            line.key = format!("user {name}");
            line.value.clear();
            if let Err(fault) = config::check_name(name) {
                notes.add(&line, format!("cannot be the name of a user here: {fault}"));
            } else if let Err(fault) = config::parse_password_hash(hash) {
                notes.add(&line, format!("{fault}; if it is a plain password: tidegate passwd {name}"));
            } else if self.passwords.get(name).is_some_and(|known| known != hash) {
                notes.add(&line, "another file has another password for this name; the first one holds");
            } else {
                self.passwords.insert(name.to_owned(), hash.to_owned());
                self.lines.entry(name.to_owned()).or_insert(line);
            }
        }
    }

    pub fn read_acl(&mut self, path: &Path, asked: &Line, notes: &mut Notes) {
        let lines = match read(path) {
            Ok(lines) => lines,
            Err(why) => return notes.add(asked, why),
        };
        self.has_acl = true;
        let mut user: Option<String> = None;
        for line in lines {
            match line.key.as_str() {
                "user" => {
                    self.rights.entry(line.value.clone()).or_default();
                    self.lines.entry(line.value.clone()).or_insert(line.clone());
                    user = Some(line.value);
                }
                "topic" => {
                    let rights = match &user {
                        Some(user) => self.rights.entry(user.clone()).or_default(),
                        None => &mut self.anonymous,
                    };
                    rights.add(&line, false, notes);
                }
                "pattern" => self.everybody.add(&line, true, notes),
                _ => notes.add(&line, "this is no line of an acl_file"),
            }
        }
    }

    /// Whether somebody can log in.
    pub fn has_users(&self) -> bool {
        self.names().next().is_some()
    }

    /// Who can log in, and by what.
    fn names(&self) -> impl Iterator<Item = &String> {
        let all: BTreeSet<&String> = self.passwords.keys().chain(self.rights.keys()).collect();
        all.into_iter().filter(|name| {
            config::check_name(name).is_ok() && (self.by_certificate || self.passwords.contains_key(*name))
        })
    }

    /// As tables; `has_anonymous`: who gives no name may do what the first lines of the acl_file say.
    pub fn tables(&self, has_anonymous: bool, notes: &mut Notes) -> String {
        let mut text = String::new();
        let is_shared = self.has_acl && self.everybody != Rights::default();
        for name in self.rights.keys().filter(|name| !self.names().any(|known| known == *name)) {
            if let Some(line) = self.lines.get(name) {
                let why = match config::check_name(name) {
                    Ok(()) => "has no password in the password_file, and so cannot log in".to_owned(),
                    Err(fault) => format!("cannot be the name of a user here: {fault}"),
                };
                notes.add(line, why);
            }
        }
        for name in self.names() {
            text.push_str(&format!("[broker.user.{}]\n", toml_key(name)));
            if let Some(hash) = self.passwords.get(name) {
                text.push_str(&format!("password_hash = {}\n", toml_text(hash)));
            }
            if self.by_certificate {
                text.push_str(&format!("certificate = {}\n", toml_text(&format!("CN={name}"))));
            }
            if is_shared {
                text.push_str(&format!("groups = [{}]\n", toml_text(EVERYBODY)));
            }
            // Without an acl_file whoever is let in may do everything.
            let all = Rights::everything();
            let own = self.rights.get(name).cloned().unwrap_or_default();
            text.push_str(&if self.has_acl { own } else { all }.lines());
            text.push('\n');
        }
        if is_shared && self.has_users() {
            text.push_str(&format!("[broker.group.{EVERYBODY}]\n{}\n", self.everybody.lines()));
        }
        if has_anonymous && (self.has_users() || self.has_acl) {
            let mut rights = if self.has_acl { self.anonymous.clone() } else { Rights::everything() };
            if self.has_acl {
                // Who gives no name has none that could be filled in.
                let fits = |pattern: &&String| !pattern.contains("{username}");
                rights.publish.extend(self.everybody.publish.iter().filter(fits).cloned());
                rights.subscribe.extend(self.everybody.subscribe.iter().filter(fits).cloned());
                rights.deny.extend(self.everybody.deny.iter().filter(fits).cloned());
                rights.is_closed |= self.everybody.is_closed;
            }
            text.push_str(&format!("[broker.anonymous]\n{}\n", rights.lines()));
        }
        text
    }
}

impl Rights {
    fn everything() -> Rights {
        let both = vec!["#".to_owned()];
        Rights { publish: both.clone(), subscribe: vec!["#".to_owned(), "$SYS/#".to_owned()], ..Rights::default() }
    }

    fn add(&mut self, line: &Line, is_pattern: bool, notes: &mut Notes) {
        let words = ["read", "write", "readwrite", "deny"];
        let (access, topic) = match line.value.split_once(char::is_whitespace) {
            Some((access, topic)) if words.contains(&access) => (access, topic.trim()),
            _ => ("readwrite", line.value.as_str()),
        };
        let has_braces = topic.contains(['{', '}']);
        let topic = match is_pattern {
            true => topic.replace("%c", "{client_id}").replace("%u", "{username}"),
            false => topic.to_owned(),
        };
        let fault = match config::parse_topic_pattern(&topic) {
            _ if has_braces => {
                Some("a topic with { or } cannot be written here: they stand for placeholders".to_owned())
            }
            parsed => parsed.err(),
        };
        if let Some(fault) = fault {
            self.is_closed |= access == "deny";
            let closed = if access == "deny" { "; so that nothing is allowed that was not, nothing is" } else { "" };
            return notes.add(line, format!("{fault}{closed}"));
        }
        let is_reserved = is_reserved(&topic);
        if access != "read" && access != "deny" && is_reserved {
            let kept = if access == "readwrite" { "; that it may be read is carried" } else { "" };
            notes.add(line, format!("clients may not publish to topics of the gateway itself{kept}"));
        }
        let add = |list: &mut Vec<String>| {
            if !list.contains(&topic) {
                list.push(topic.clone());
            }
        };
        if access == "deny" {
            add(&mut self.deny);
        }
        if matches!(access, "read" | "readwrite") {
            add(&mut self.subscribe);
        }
        if matches!(access, "write" | "readwrite") && !is_reserved {
            add(&mut self.publish);
        }
    }

    fn lines(&self) -> String {
        if self.is_closed {
            return "deny = [\"#\"]\n".to_owned();
        }
        let lists = [("publish", &self.publish), ("subscribe", &self.subscribe), ("deny", &self.deny)];
        let written = lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(key, list)| {
            let texts: Vec<String> = list.iter().map(|text| toml_text(text)).collect();
            format!("{key} = [{}]\n", texts.join(", "))
        });
        written.collect()
    }
}
