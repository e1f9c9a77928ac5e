//! Mosquitto's bridges as uplinks.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::conf::{Line, Notes, beside};
use crate::config::{check_name, toml_key, toml_text};
use crate::message::Filter;

/// One `connection`.
#[derive(Debug)]
pub(super) struct Bridge {
    pub line: Line,
    pub options: Vec<Line>,
}

/// One rule of it.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    filter: String,
    topic: String,
    qos: u8,
}

impl Bridge {
    fn option(&self, keys: &[&str]) -> Option<&Line> {
        self.options.iter().rev().find(|line| keys.contains(&line.key.as_str()))
    }

    /// As tables; `None` with a note when it cannot be any.
    pub fn tables(&self, secrets: Option<&Path>, notes: &mut Notes) -> Option<String> {
        let name = &self.line.value;
        if let Err(fault) = check_name(name) {
            notes.add(&self.line, format!("cannot be the name of an uplink: {fault}"));
            return None;
        }
        let is_tls = self.option(&["bridge_cafile", "bridge_capath", "bridge_certfile"]).is_some();
        let scheme = if is_tls { "mqtts" } else { "mqtt" };
        let addresses: Vec<String> = self
            .options
            .iter()
            .filter(|line| matches!(line.key.as_str(), "address" | "addresses"))
            .flat_map(Line::words)
            .map(|address| match address.rsplit_once(':') {
                Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) => format!("{scheme}://{address}"),
                _ => format!("{scheme}://{address}:1883"),
            })
            .collect();
        let urls: Vec<String> = addresses.iter().map(|url| toml_text(url)).collect();
        let mut text = format!("[uplink.{}]\n", toml_key(name));
        match urls.as_slice() {
            [] => {
                notes.add(&self.line, "has no address");
                return None;
            }
            [url] => text.push_str(&format!("url = {url}\n")),
            urls => text.push_str(&format!("url = [{}]\n", urls.join(", "))),
        }
        for line in &self.options {
            match setting(line) {
                Setting::Line(setting) => text.push_str(&setting),
                Setting::Note(why) => notes.add(line, why),
                Setting::Elsewhere => {}
            }
        }
        if self.option(&["bridge_protocol_version"]).is_none() {
            text.push_str("protocol = \"3.1.1\"\n");
        }
        if let Some(line) = self.option(&["remote_password", "password"]) {
            match secrets.map(|directory| keep_secret(directory, name, &line.value)) {
                Some(Ok(file)) => text.push_str(&format!("password_file = {}\n", toml_text(&file))),
                Some(Err(error)) => notes.add(line, format!("the password could not be written: {error}")),
                None => {
                    text.push_str(&format!("#password_file = \"/etc/tidegate/{name}.password\"\n"));
                    notes.add(
                        line,
                        "put the password into a file that others may not read and name it: password_file; \
                                     or import with --secrets DIR",
                    );
                }
            }
        }
        text.push('\n');
        text.push_str(&self.rules(notes));
        Some(text)
    }

    fn rules(&self, notes: &mut Notes) -> String {
        let mut text = String::new();
        let mut forward: Vec<(Filter, &Line)> = Vec::new();
        let mut receive: Vec<(Filter, &Line)> = Vec::new();
        for line in self.options.iter().filter(|line| line.key == "topic") {
            let (directions, local, remote, pattern, qos) = match parse(line) {
                Ok(parsed) => parsed,
                Err(why) => {
                    notes.add(line, why);
                    continue;
                }
            };
            for direction in directions {
                let (kind, from, to, known) = match direction {
                    Direction::Out => ("forward", &local, &remote, &mut forward),
                    Direction::In => ("receive", &remote, &local, &mut receive),
                };
                let Rule { filter, topic, qos } = rule(&pattern, from, to, qos);
                let wanted = match Filter::new(&filter) {
                    Ok(wanted) if !filter.starts_with("$share/") => wanted,
                    Ok(_) => {
                        notes.add(line, "a shared subscription is not taken in by an uplink");
                        continue;
                    }
                    Err(error) => {
                        notes.add(line, error.to_string());
                        continue;
                    }
                };
                if let Some((_, first)) = known.iter().find(|(first, _)| first.meets(&wanted)) {
                    let place = &first.place;
                    if known.iter().any(|(first, _)| first.covers(&wanted)) {
                        notes
                            .add(line, format!("the rule of {place} takes all of these topics, and each goes one way"));
                        continue;
                    }
                    notes.add(line, format!("is carried; what matches the rule of {place} too goes that way only"));
                }
                text.push_str(&format!(
                    "[[uplink.{}.{kind}]]\nfilter = {}\n",
                    toml_key(&self.line.value),
                    toml_text(&filter)
                ));
                if topic != "{topic}" {
                    text.push_str(&format!("topic = {}\n", toml_text(&topic)));
                }
                // Above that a message goes as it was published, which is what Mosquitto does.
                if kind == "receive" || qos < 2 {
                    text.push_str(&format!("qos = {qos}\n"));
                }
                known.push((wanted, line));
            }
        }
        if forward.is_empty() {
            text.push_str("# Without a forward rule readings of field devices (field/#) go up.\n");
        }
        text + "\n"
    }
}

enum Direction {
    Out,
    In,
}

type Parsed = (Vec<Direction>, String, String, String, u8);

/// `topic pattern [[[out | in | both] qos-level] local-prefix remote-prefix]`
fn parse(line: &Line) -> Result<Parsed, String> {
    let words = line.words();
    let empty = |word: Option<&&str>| word.map(|word| word.trim_matches('"').to_owned()).unwrap_or_default();
    let directions = match words.get(1) {
        None | Some(&"out") => vec![Direction::Out],
        Some(&"in") => vec![Direction::In],
        Some(&"both") => vec![Direction::Out, Direction::In],
        Some(other) => return Err(format!("{other:?} is no direction")),
    };
    let qos = match words.get(2) {
        None => 0,
        Some(text) => text.parse().ok().filter(|qos| *qos <= 2).ok_or(format!("{text:?} is no QoS"))?,
    };
    let (local, remote) = (empty(words.get(3)), empty(words.get(4)));
    if [&local, &remote].into_iter().any(|prefix| prefix.contains(['+', '#', '{', '}'])) {
        return Err("a prefix with + # { } cannot be written here".to_owned());
    }
    Ok((directions, local, remote, empty(words.first()), qos))
}

/// What matches `pattern` under one prefix goes to the same place under the other.
fn rule(pattern: &str, from: &str, to: &str, qos: u8) -> Rule {
    let filter = format!("{from}{pattern}");
    if from.is_empty() {
        return Rule { topic: format!("{to}{{topic}}"), filter, qos };
    }
    let mut plus = 0;
    let levels: Vec<String> = pattern
        .split('/')
        .map(|level| match level {
            "+" => {
                plus += 1;
                format!("{{{plus}}}")
            }
            "#" => "{rest}".to_owned(),
            level => level.to_owned(),
        })
        .collect();
    Rule { topic: format!("{to}{}", levels.join("/")), filter, qos }
}

enum Setting {
    Line(String),
    Note(&'static str),
    Elsewhere,
}

fn setting(line: &Line) -> Setting {
    let text = |key: &str| Setting::Line(format!("{key} = {}\n", toml_text(&line.value)));
    let path = |key: &str| {
        Setting::Line(format!("{key} = {}\n", toml_text(&beside(&line.place.file, &line.value).display().to_string())))
    };
    let seconds = |text: &str| text.parse::<u32>().ok();
    match line.key.as_str() {
        "address" | "addresses" | "topic" | "remote_password" | "password" => Setting::Elsewhere,
        "remote_username" | "username" => text("username"),
        "remote_clientid" | "clientid" => text("client_id"),
        "bridge_cafile" => path("ca"),
        "bridge_certfile" => path("cert"),
        "bridge_keyfile" => path("key"),
        "bridge_alpn" => Setting::Line(format!("alpn = [{}]\n", toml_text(&line.value))),
        "bridge_protocol_version" => match line.value.as_str() {
            "mqttv50" => Setting::Line("protocol = \"5\"\n".to_owned()),
            "mqttv311" => Setting::Line("protocol = \"3.1.1\"\n".to_owned()),
            _ => Setting::Note("MQTT 3.1 is not spoken to a cloud: 3.1.1 or 5"),
        },
        "keepalive_interval" => match seconds(&line.value).filter(|seconds| *seconds <= 65_535) {
            Some(seconds) => Setting::Line(format!("keep_alive = \"{seconds}s\"\n")),
            None => Setting::Note("this is no time"),
        },
        "restart_timeout" => {
            let words: Vec<Option<u32>> = line.words().into_iter().map(seconds).collect();
            match words.as_slice() {
                [Some(first @ 1..)] => {
                    Setting::Line(format!("reconnect = {{ first = \"{first}s\", max = \"{first}s\" }}\n"))
                }
                [Some(first @ 1..), Some(max)] if max >= first => {
                    Setting::Line(format!("reconnect = {{ first = \"{first}s\", max = \"{max}s\" }}\n"))
                }
                _ => Setting::Note("these are no times"),
            }
        }
        "cleansession" if !line.is_true() => Setting::Note("needs nothing here: the session is always kept"),
        "cleansession" => {
            Setting::Note("the session is always kept at the cloud: nothing acknowledged is lost with a line")
        }
        "notifications" | "notification_topic" | "notifications_local_only" => Setting::Note(
            "the state of an uplink stands under $SYS/broker/connection/<uplink>/state, and at the cloud below own_topic",
        ),
        "try_private"
        | "bridge_attempt_unsubscribe"
        | "local_clientid"
        | "local_username"
        | "local_password"
        | "local_cleansession"
        | "start_type"
        | "idle_timeout"
        | "threshold"
        | "round_robin" => {
            Setting::Note("needs nothing here: an uplink is part of the gateway, and is there at all times")
        }
        "bridge_capath" => Setting::Note("name one file: ca"),
        "bridge_insecure" => Setting::Note("the name in the cloud's certificate is always checked"),
        "bridge_tls_version" => Setting::Note("needs nothing here: TLS is 1.2 or 1.3"),
        "bridge_identity" | "bridge_psk" => Setting::Note("keys that are shared beforehand are not served"),
        _ => Setting::Note("there is no such setting here"),
    }
}

fn keep_secret(directory: &Path, name: &str, password: &str) -> std::io::Result<String> {
    fs::create_dir_all(directory)?;
    let path = fs::canonicalize(directory)?.join(format!("{name}.password"));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(password.as_bytes())?;
    file.write_all(b"\n")?;
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_taken_off_and_put_on_as_mosquitto_does_it() {
        for (pattern, from, to, filter, topic) in [
            ("plant/#", "", "", "plant/#", "{topic}"),
            ("plant/#", "", "factory/", "plant/#", "factory/{topic}"),
            ("#", "local/", "remote/", "local/#", "remote/{rest}"),
            ("+/level/#", "plant/", "", "plant/+/level/#", "{1}/level/{rest}"),
            ("", "a/b", "c/d", "a/b", "c/d"),
        ] {
            let expected = Rule { filter: filter.to_owned(), topic: topic.to_owned(), qos: 1 };
            assert_eq!(rule(pattern, from, to, 1), expected, "{pattern} {from} {to}");
        }
    }
}
